"""EBFT: completions are drawn towards the known answers in the features of the first model."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from finetune_api.methods import Ebft
from finetune_api.trainer import TrainerConfig
from finetune_trainer.data.dataset import TRAIN, load_rows
from finetune_trainer.methods.features import Features, Text, match
from unit.trainer.builders import make_plan
from unit.trainer.conftest import Site
from unit.trainer.processes import Interruption

_SPEC: dict[str, Any] = {
    "method": "ebft",
    "adapter": {"type": "full"},
    "ebft": {"pooling": "completion_mean", "featureLayers": [0.5, 1.0]},
    "generation": {"groupSize": 8, "maxCompletionLength": 12},
    "dataset": {"source": "pvc://data/answers.jsonl", "evalFraction": 0.2},
    "training": {"maxSteps": 20, "batchSize": 16, "learningRate": 0.01, "warmupRatio": 0},
}
_LORA = {"type": "lora", "lora": {"rank": 8, "dropout": 0.1}}


def ebft_job(site: Site, **changes: Any) -> TrainerConfig:
    """Prepare a job whose every answer is one letter, again and again."""
    rows = [{"prompt": f"Word {number}:", "completion": "a" * 12} for number in range(10)]
    site.write_data(rows, "answers.jsonl")
    plan = make_plan(micro_batch_size=8, gradient_accumulation_steps=2)
    return site.job(plan, **(_SPEC | changes))


def test_completions_come_nearer_to_the_known_answers(site: Site) -> None:
    assert site.run(ebft_job(site)) == 0
    first, last = site.metrics()[0], site.metrics()[-1]
    assert last["eval_ebft/alignment"] > first["eval_ebft/alignment"] + 0.2
    assert last["eval_ebft/cfm_loss"] < first["eval_ebft/cfm_loss"] - 0.2
    assert last["eval_reward"] > first["eval_reward"] + 0.2
    assert last["eval_reward"] == pytest.approx(last["eval_ebft/reward"], abs=1e-6)


def test_the_rows_own_answer_is_the_ground_truth(site: Site) -> None:
    rows = [{"prompt": f"{n}:", "completion": "right", "ground_truth": n} for n in range(10)]
    site.write_data(rows, "answers.jsonl")
    site.job(make_plan(micro_batch_size=8), **_SPEC)
    stored = load_rows(site.paths.data, TRAIN)
    assert stored is not None
    assert set(stored["ground_truth"]) == {"right"}


def test_a_killed_run_ends_like_an_uninterrupted_one(site: Site) -> None:
    training = _SPEC["training"] | {"maxSteps": 6, "checkpoint": {"everySteps": 2}}
    changes = {"training": training, "adapter": _LORA, "ebft": {"whitening": True}}
    assert site.run(ebft_job(site, **changes), Interruption("step", 6)) == -signal.SIGKILL
    assert site.run(ebft_job(site, **changes)) == 0
    resumed = _measured(site)
    site.clear()
    assert site.run(ebft_job(site, **changes)) == 0
    assert _measured(site) == resumed


def _measured(site: Site) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in entry.items() if name != "step_time"}
        for entry in site.metrics()
    ]


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model).eval().get_decoder()


_TEXTS: list[Text] = [((5, 6, 7), (8, 9)), ((5,), tuple(range(10, 40))), ((5, 6, 7), ())]


@pytest.mark.parametrize("pooling", ["last_token", "mean_pooling", "completion_mean", "concat"])
def test_features_do_not_depend_on_what_else_is_in_the_batch(decoder: Any, pooling: str) -> None:
    options = Ebft.model_validate({"pooling": pooling})
    together = Features(options, 8, 0).of(decoder, [*_TEXTS, _TEXTS[0]], torch.device("cpu"))
    alone = Features(options, 1, 0).of(decoder, _TEXTS, torch.device("cpu"))
    torch.testing.assert_close(together[:3], alone)
    torch.testing.assert_close(together[3], together[0])
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(4))


def test_pooling_takes_the_tokens_that_its_name_says(decoder: Any) -> None:
    prompt, completion = _TEXTS[0]
    states = decoder(torch.tensor([prompt + completion]), output_hidden_states=True).hidden_states
    for pooling, expected in {
        "last_token": states[2][0, 4],
        "mean_pooling": states[2][0].mean(0),
        "completion_mean": states[2][0, 3:].mean(0),
        "concat": torch.cat([states[2][0, place] for place in (1, 2, 3)]),
    }.items():
        options = Ebft.model_validate({"pooling": pooling, "featureLayers": [1.0]})
        found = Features(options, 1, 0).of(decoder, _TEXTS[:1], torch.device("cpu"))[0]
        torch.testing.assert_close(found, normalize(expected, dim=0))


def _unit_vectors(*shape: int) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(1)), dim=-1)


def test_rewards_follow_the_papers_formula() -> None:
    written, known = _unit_vectors(2, 3, 5), _unit_vectors(2, 5)
    options = Ebft(alignment_coefficient=0.5, diversity_coefficient=0.25)
    found = match(written, known, whitening=False)
    for prompt in range(2):
        mean = written[prompt].mean(0)
        assert found.distance[prompt] == pytest.approx((mean - known[prompt]).square().sum().item())
        for sample in range(3):
            own = written[prompt, sample]
            others = [written[prompt, other] @ own for other in range(3) if other != sample]
            aligned = cosine_similarity(own, known[prompt], dim=0)
            expected = 2 * 0.5 * aligned - 2 * 0.25 * sum(others) / 2
            reward = found.rewards(options)[prompt, sample].item()
            assert reward == pytest.approx(expected.item(), abs=1e-6)


def test_a_single_completion_is_like_no_other() -> None:
    found = match(_unit_vectors(2, 1, 5), _unit_vectors(2, 5), whitening=False)
    assert found.similarity.tolist() == [[0.0], [0.0]]


def test_whitening_leaves_only_equal_completions_alike() -> None:
    written = _unit_vectors(1, 4, 9)
    written[0, 3] = written[0, 2]
    found = match(written, written[:, 0], whitening=True)
    # Of the three others, one is equal.
    expected = torch.tensor([[0.0, 0.0, 1 / 3, 1 / 3]])
    torch.testing.assert_close(found.similarity, expected, atol=1e-4, rtol=0)
    aligned = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(found.alignment, aligned, atol=1e-4, rtol=0)
