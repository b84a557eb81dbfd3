"""The memory model against the tensors that the trainer's own loop holds, on small random models.

The loop runs on the CPU as on a GPU: in bf16, with the output head's tiles in place as its Triton
kernels have them.
"""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.trainer_utils import SaveStrategy
from trl.experimental.orpo import orpo_trainer
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from finetune_api.spec import Generation, Method
from finetune_api.status import DatasetFacts, Preparation
from finetune_api.trainer import TrainerConfig
from finetune_operator.planning.architecture import facts_of_config
from finetune_operator.planning.memory import Candidate, activations, layers
from finetune_operator.planning.memory.candidate import batch_of
from finetune_operator.planning.memory.estimate import held
from finetune_operator.planning.memory.rollout import generation
from finetune_trainer.adapter import lora_config
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.device import Device
from finetune_trainer.lora import add_within_products
from finetune_trainer.methods import module_of
from finetune_trainer.methods.setup import Setup
from finetune_trainer.paths import Paths
from unit.trainer.builders import make_config, make_plan, save_tokenizer

COLUMNS = 1024
"""Narrow tiles, which leave room for the layers to matter."""

SHAPE: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}

MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 192},
    "qwen2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 192,
        "shared_expert_intermediate_size": 320,
    },
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 192},
}


class Tracker(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) not in self.sizes:
            self.sizes[id(storage)] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.drop, id(storage))

    def drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return out


class NoGuard:
    """A guard that finds nothing."""

    def check_gradient(self, *_: Any, **__: Any) -> bool:
        return False

    def take_skipped(self) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class Case:
    """What is traced."""

    method: str = "sft"
    adapter: str = "lora"
    checkpointing: Any = "none"
    micro_batch: int = 2
    accumulation: int = 1
    length: int = 256
    family: str = "llama"
    vocabulary: int = SHAPE["vocab_size"]
    equal: bool = True
    """Whether all rows are equally long."""
    lora: Any = None
    change: Any = None
    """Of the shape."""
    cpu: bool = False
    """Whether it runs as it would without a GPU: in float32, and with nothing replaced."""

    @property
    def precision(self) -> Any:
        return "float32" if self.cpu else "bf16"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.cpu else torch.bfloat16

    @property
    def shape(self) -> Any:
        mixture = MIXTURES.get(self.family, {})
        change = {"vocab_size": self.vocabulary} | (self.change or {})
        return CONFIG_MAPPING[self.family](**SHAPE | mixture | change)

    @property
    def config(self) -> TrainerConfig:
        adapter: dict[str, Any] = {"type": self.adapter}
        if self.lora:
            adapter["lora"] = self.lora
        batch = self.micro_batch * self.accumulation
        online: dict[str, Any] = {
            "rewards": [{"name": "length", "builtin": "length"}],
            "generation": {"groupSize": 2, "maxCompletionLength": 64},
        }
        return make_config(
            make_plan(
                micro_batch_size=self.micro_batch,
                gradient_accumulation_steps=self.accumulation,
                max_length=self.length,
                gradient_checkpointing=self.checkpointing,
                precision=self.precision,
            ),
            method=self.method,
            adapter=adapter,
            training={"maxSteps": 2, "batchSize": batch, "precision": self.precision},
            **(online if self.method == "grpo" else {}),
        )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    loaded.pad_token = loaded.eos_token
    return loaded


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the output head fill its tiles in place; what is in them does not matter."""

    def nothing(*_: Any, **__: Any) -> None:
        pass

    monkeypatch.setattr(chunked_logprob, "_forward_tile", nothing)
    monkeypatch.setattr(chunked_logprob, "_backward_tile", nothing)
    monkeypatch.setattr(chunked_logprob, "_addmm_fp32", nothing)
    monkeypatch.setattr(orpo_trainer, "selective_log_softmax", _LogProbabilities.apply)
    monkeypatch.setattr(trl_utils, "_use_triton", lambda _: True)
    monkeypatch.setattr(trl_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", COLUMNS)
    monkeypatch.setattr(activations, "TILE_COLUMNS", COLUMNS)
    yield
    torch.manual_seed(0)


class _LogProbabilities(torch.autograd.Function):
    """What TRL's kernel for them holds (kernels/logprob_entropy.py); the numbers do not matter."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits)
        return torch.full(index.shape, -1.0)

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Any:
        return torch.zeros_like(ctx.saved_tensors[0], memory_format=torch.contiguous_format), None


def rows(case: Case) -> Dataset:
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(4, 260, (count,), generator=draw).tolist()

    def row(index: int) -> dict[str, Any]:
        whole = case.length
        length = whole if case.equal or index % 2 else whole // 2
        if case.method == "sft":
            return {"input_ids": (tokens := ids(length)), "labels": tokens}
        if case.method == "grpo":
            # Prompts of two lengths, so that attention is masked whatever is written.
            return {"prompt": "p" * (length - 64 - 32 * (index % 2))}
        prompt = {"prompt_ids": ids(8)}
        if case.method == "kto":
            return prompt | {"completion_ids": ids(length - 8), "label": index % 2 == 0}
        return prompt | {"chosen_ids": ids(length - 8), "rejected_ids": ids(whole - 8)}

    count = 2 * case.micro_batch * case.accumulation
    return Dataset.from_list([row(index) for index in range(count)])


def trace(case: Case, tokenizer: Any, folder: Path) -> tuple[int, int]:
    """Return the bytes of states before, and those of all tensors at most, of the second step."""
    config = case.config
    assert config.plan is not None
    reward = config.spec.method is Method.REWARD
    auto = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    labels: dict[str, Any] = {"num_labels": 1} if reward else {}
    shape = case.shape
    shape.update(labels)
    auto.from_config(shape, dtype=case.dtype).save_pretrained(folder / "model")
    setup = Setup(
        config=config,
        plan=config.plan,
        device=Device(cuda=False, dtype=case.dtype),
        paths=Paths(folder / "workspace", folder / "output", folder / "sources"),
        model=auto.from_pretrained(folder / "model", dtype=case.dtype),
        tokenizer=tokenizer,
        train=rows(case),
        held_out=None,
        longest=case.length,
    )
    setup.prepare()
    trainer = setup.finish(module_of(config.spec.method).build(setup))
    trainer.guard, trainer.checkpoints = NoGuard(), Checkpoints(folder / "checkpoints", 1)
    trainer.args.save_strategy = SaveStrategy.NO
    tracker, before = Tracker(), []
    reference = getattr(trainer, "ref_model", None)
    for model in [trainer.model, *([reference] if reference else [])]:
        for tensor in [*model.parameters(), *model.buffers()]:
            tracker.add(tensor.data)
    step = trainer.training_step

    def training_step(*arguments: Any, **options: Any) -> Any:
        before.append(tracker.now)
        tracker.peak = tracker.now
        return step(*arguments, **options)

    trainer.training_step = training_step
    with tracker:
        trainer.train()
        peak = tracker.peak
    return before[case.accumulation], peak


def preparation_of(case: Case) -> Preparation:
    facts = facts_of_config(case.shape.to_dict())
    mean = case.length if case.equal else 0.75 * case.length
    dataset = DatasetFacts(
        format="pretokenized",
        rows=8,
        eval_rows=0,
        tokens=round(8 * mean),
        max_tokens=case.length,
        mean_tokens=mean,
        p95_tokens=case.length,
    )
    return Preparation(model=facts, dataset=dataset)


def candidate_of(case: Case) -> Candidate:
    return Candidate(
        gpus=0 if case.cpu else 1,
        strategy="single",
        micro_batch_size=case.micro_batch,
        max_length=case.length,
        checkpointing=case.checkpointing,
        precision=case.precision,
    )


def parts(case: Case) -> dict[str, float]:
    return held(case.config.spec, preparation_of(case), candidate_of(case))


EXPERTS = {"targetModules": ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]}

CASES = {
    "lora": Case(),
    "lora of some layers": Case(lora={"rank": 32, "targetModules": ["q_proj", "v_proj"]}),
    "full": Case(adapter="full"),
    "full, large vocabulary": Case(adapter="full", vocabulary=16384),
    "full with accumulation": Case(adapter="full", accumulation=2),
    "lora, checkpointing": Case(checkpointing="full", length=512),
    "lora, selective": Case(checkpointing="selective", length=512),
    "full, checkpointing": Case(adapter="full", checkpointing="full", length=512),
    "full, one long row": Case(adapter="full", micro_batch=1, length=1024),
    "rows of many lengths": Case(equal=False),
    "dpo": Case("dpo", micro_batch=1),
    "dpo, selective": Case("dpo", checkpointing="selective", micro_batch=1, length=512),
    "dpo full": Case("dpo", "full", micro_batch=1),
    "kto": Case("kto"),
    "orpo": Case("orpo", micro_batch=1),
    "orpo full": Case("orpo", "full", micro_batch=1),
    "reward": Case("reward", micro_batch=1),
    "grpo": Case("grpo", micro_batch=4),
    "grpo full": Case("grpo", "full", micro_batch=4),
    "qwen3": Case(family="qwen3"),
    "gemma3": Case(family="gemma3_text"),
    "gemma3 full": Case(adapter="full", family="gemma3_text"),
    "phi3": Case(family="phi3"),
    "mixture": Case(family="qwen3_moe"),
    "mixture full": Case(adapter="full", family="qwen3_moe"),
    "mixture, checkpointing": Case(checkpointing="full", family="qwen3_moe", length=512),
    "mixture, selective": Case(checkpointing="selective", family="qwen3_moe", length=512),
    "mixture full, checkpointing": Case("sft", "full", "full", family="qwen3_moe", length=512),
    "mixture full with accumulation": Case(adapter="full", accumulation=2, family="qwen3_moe"),
    "mixture, its experts adapted": Case(family="qwen3_moe", lora=EXPERTS),
    "mixture, its experts adapted, checkpointing": Case(
        family="qwen3_moe", lora=EXPERTS, checkpointing="full", length=512
    ),
    "mixture, its many experts adapted": Case(
        family="qwen3_moe",
        lora=EXPERTS,
        checkpointing="full",
        length=128,
        change={"num_experts": 32},
    ),
    "mixture with dense layers": Case(family="qwen3_moe", change={"mlp_only_layers": [1, 4]}),
    "mixture with dense layers full": Case(
        adapter="full", family="qwen3_moe", change={"mlp_only_layers": [1, 4]}
    ),
    "mixture dpo": Case("dpo", micro_batch=1, family="qwen3_moe"),
    "mixture dpo full": Case("dpo", "full", micro_batch=1, family="qwen3_moe"),
    "mixture grpo": Case("grpo", micro_batch=4, family="qwen3_moe"),
    "mixtral": Case(family="mixtral"),
    "mixtral full": Case(adapter="full", family="mixtral"),
    "mixtral, checkpointing": Case(checkpointing="full", family="mixtral", length=512),
    "shared expert": Case(family="qwen2_moe"),
    "shared expert full": Case(adapter="full", family="qwen2_moe"),
    "shared expert, checkpointing": Case(checkpointing="full", family="qwen2_moe", length=512),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("in_place")
def test_the_closed_form_is_within_two_percent_of_a_trace(
    name: str, tokenizer: Any, tmp_path: Path
) -> None:
    compare(CASES[name], tokenizer, tmp_path)


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "mixtral"])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_without_a_gpu_it_is_too(adapter: str, family: str, tokenizer: Any, tmp_path: Path) -> None:
    compare(Case(adapter=adapter, family=family, cpu=True), tokenizer, tmp_path)


def compare(case: Case, tokenizer: Any, folder: Path) -> None:
    before, peak = trace(case, tokenizer, folder)
    planned = parts(case)
    kept = ("weights", "adapter", "optimizer", "reference")
    assert sum(planned[part] for part in kept) == pytest.approx(before, rel=0.02)
    assert sum(planned.values()) == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize("family", ["llama", *MIXTURES])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_writing_completions_is_within_five_percent(adapter: str, family: str) -> None:
    case = Case("grpo", adapter, micro_batch=4, family=family)
    spec = case.config.spec.model_copy(update={"generation": Generation(max_completion_length=64)})
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(case.shape, dtype=case.dtype)
    lora = lora_config(spec.adapter, spec.method, model)
    if lora is not None:
        model = get_peft_model(model, lora)
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                # As the trainer has it.
                module.cast_input_dtype_enabled = False  # type: ignore[attr-defined]
    tracker = Tracker()
    for tensor in model.parameters():
        tracker.add(tensor.data)
    before = tracker.now
    prompts = torch.randint(4, 260, (4, 192))
    mask = torch.ones_like(prompts)
    with tracker, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.generate(input_ids=prompts, attention_mask=mask, min_new_tokens=64, max_new_tokens=64)
    planned = generation(spec, preparation_of(case), candidate_of(case))
    assert tracker.peak - before == pytest.approx(planned, rel=0.05)


@pytest.mark.parametrize(
    ("adapter", "family", "within"),
    [
        ("lora", "llama", True),
        ("lora", "llama", False),
        ("full", "llama", False),
        ("full", "gemma3_text", False),
        ("lora", "qwen3_moe", True),
        ("lora", "qwen3_moe", False),
        ("full", "qwen3_moe", False),
    ],
)
def test_compiled_layers_save_what_the_closed_form_says(
    adapter: str, family: str, within: bool
) -> None:
    case = Case(adapter=adapter, family=family, micro_batch=1, length=320)
    candidate = replace(candidate_of(case), compile=True)
    batch = batch_of(case.config.spec, preparation_of(case), candidate)
    model = preparation_of(case).model
    sparse = model.experts is not None
    planned = layers.saved(case.config.spec, model, candidate, batch, sparse=sparse)
    three, two = (saved_in_forward(case, count, within=within) for count in (3, 2))
    assert planned == pytest.approx((three - two) / batch.tokens, rel=0.005)


def saved_in_forward(case: Case, count: int, *, within: bool) -> int:
    """Return the bytes that so many compiled layers save; adapters in bf16, as autocast has them.

    The compiler decides what to save before it makes code for a device: none is made here.
    `within` says whether adapters are added within the layers' products.
    """
    shape = replace(case, change={"num_hidden_layers": count}).shape
    model: Any = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    decoder = model.get_decoder()
    lora = lora_config(case.config.spec.adapter, Method.SFT, model)
    if lora is not None:
        model = get_peft_model(model, lora, autocast_adapter_dtype=False)
        if within:
            add_within_products(model)
    torch.compiler.reset()
    for layer in decoder.layers:
        layer.compile(backend="aot_eager_decomp_partition")
    weights = {tensor.untyped_storage() for tensor in [*model.parameters(), *model.buffers()]}
    # Copies of an adapter's weights are another part of the plan; no row has as many tokens.
    adapters = {weight.shape for name, weight in model.named_parameters() if "lora_" in name}
    assert not any(case.length in shape for shape in adapters)
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage not in weights and tensor.shape not in adapters:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(4, 260, (1, case.length))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = decoder(input_ids=tokens, use_cache=False)
    assert out is not None
    return sum(found.values())
