"""The report and the model card: what people read once training is over."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from huggingface_hub import ModelCard

from finetune_api.spec import DatasetPart
from finetune_api.status import DatasetFacts, Finding, Memory, ModelStart, Rollback, Stability
from finetune_trainer.model_card import model_card
from finetune_trainer.report.charts import draw_all, thin
from finetune_trainer.report.data import ReportData, Sample, Trained, rows_seen
from finetune_trainer.report.page import render
from unit.trainer.builders import make_config, make_plan

_VOID = {"meta", "link", "br", "img", "hr", "input"}
FACTS = DatasetFacts(
    format="chat", rows=40, eval_rows=4, tokens=900, max_tokens=30, mean_tokens=22.5, p95_tokens=29
)


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps what a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str | None] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href", "srcset"}]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take an element that closes itself, as SVG's do, by the same rules."""
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def make_data(
    metrics: dict[str, float] | None = None,
    entries: list[dict[str, Any]] | None = None,
    memory: Memory | None = None,
    **fields: Any,
) -> ReportData:
    """Return the account of a run of 3 steps; keyword arguments replace parts of it or the spec."""
    parts = {"stability", "samples", "measured"} & fields.keys()
    given = {name: fields.pop(name) for name in parts}
    config = {name: fields.pop(name) for name in {"starts", "rollbacks", "attempt"} & fields.keys()}
    plan = make_plan(memory=memory) if memory else make_plan()
    return ReportData(
        config=make_config(plan, **fields).model_copy(update=config),
        plan=plan,
        parts=[DatasetPart(source="hf://acme/chats")],
        facts=FACTS,
        trained=Trained(
            metrics=metrics or {"loss": 1.5, "eval_loss": 1.25, "eval_loss_before": 2.5},
            learning_rate=0.01,
            steps=3,
            batch=4,
            epochs=0.3,
            rows_seen=12,
            device="cpu",
            dtype="float32",
            tokens_per_second=100.0,
        ),
        entries=[{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]
        if entries is None
        else entries,
        **{"measured": {}, "stability": None, "samples": []} | given,
    )


def test_the_page_needs_nothing_from_anywhere_and_runs_no_script() -> None:
    html = render(make_data())
    page = Page(html)
    assert page.addresses == []
    assert "script" not in page.tags
    assert not re.search(r"url\(|@import", html)
    assert "default-src 'none'" in html


def test_what_the_model_wrote_is_shown_and_not_run() -> None:
    evil = "</div><script>alert(1)</script>"
    page = Page(render(make_data(samples=[Sample("Say & write <b>", evil, "fine")])))
    assert "script" not in page.tags
    assert evil in page.text
    assert "Say & write <b>" in page.text


def test_a_long_run_makes_a_small_page_that_keeps_every_spike() -> None:
    names = ("loss", "grad_norm", "entropy", *[f"other/{number}" for number in range(20)])
    entries = [
        {"step": step} | dict.fromkeys(names, 1.0 + step % 7) | {"learning_rate": 1e-5}
        for step in range(1, 5001)
    ]
    entries[3210]["loss"] = 500.0
    assert len(render(make_data(entries=entries))) < 300_000
    points = [(float(entry["step"]), float(entry["loss"])) for entry in entries]
    assert (3211.0, 500.0) in thin(points)
    assert {points[0], points[-1]} <= set(thin(points))


def test_metrics_that_no_chart_knows_get_one_of_their_own() -> None:
    known, others = draw_all(
        [
            {"step": 1, "rewards/brevity/mean": 0.5, "odd": 1.0, "num_tokens": 10},
            {"step": 1, "eval_odd": 2.0},
        ],
        [],
    )
    assert [(chart.title, [curve.label for curve in chart.curves]) for chart in known] == [
        ("Mean of each reward", ["brevity"])
    ]
    assert [(chart.title, [curve.label for curve in chart.curves]) for chart in others] == [
        ("odd", ["training", "held out"])
    ]


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [{"step": 0, "eval_loss": 2.0}],
        [{"step": 1, "loss": 0.0}, {"step": 2, "loss": 0.0}],
        [{"step": 1, "loss": -1e-9}, {"step": 2, "loss": 1e9}],
        [
            {"step": 1, "grad_norm": 1e-6},
            {"step": 2, "grad_norm": 1e-6},
            {"step": 3, "grad_norm": 1},
        ],
    ],
)
def test_any_curve_can_be_drawn(entries: list[dict[str, Any]]) -> None:
    Page(render(make_data(entries=entries)))


def test_findings_and_rollbacks_are_told_and_marked_in_every_chart() -> None:
    finding = Finding(
        rule="loss-spike", severity="Critical", step=2, message="loss was 90", advice="Lower it."
    )
    rollback = Rollback(rule="loss-spike", step=2, to_step=1, learning_rate_factor=0.5)
    html = render(
        make_data(
            stability=Stability(verdict="Unstable", findings=[finding]),
            rollbacks=[rollback],
            attempt=2,
        )
    )
    text = Page(html).text
    assert "Stability: Unstable, 1 finding." in text
    assert "loss was 90" in text
    assert "Lower it." in text
    assert "step 2, loss-spike: rolled back to step 1" in text
    assert "attempt 2" in text
    assert html.count('class="mark critical"') == html.count('class="mark rollback"') == 1


def test_a_quiet_run_says_that_nothing_was_found() -> None:
    data = make_data(stability=Stability(verdict="Stable"))
    assert "Stability: Stable, nothing was found." in Page(render(data)).text
    assert "Stability: Stable, nothing was found." in model_card(data)


def test_the_measured_peak_is_held_against_the_plan_where_it_was_made_for() -> None:
    memory = Memory(weights=6, gradients=0, optimizer=1, activations=2, slack=1, total=10)
    text = Page(render(make_data(memory=memory, measured={"host_memory_gib": 8.0}))).text
    assert "planned in all 10.00 GiB" in text
    assert "measured peak 8.00 GiB" in text
    assert "gradients" not in text


@pytest.mark.parametrize(
    ("method", "metrics", "row"),
    [
        ("sft", {"eval_loss": 1.25, "eval_loss_before": 2.5}, "held-out loss | 2.5000 | 1.2500"),
        (
            "reward",
            {"eval_accuracy": 0.9, "eval_accuracy_before": 0.5},
            "reward accuracy (0.5 is chance) | 0.5000 | 0.9000",
        ),
        (
            "dpo",
            {"eval_rewards/accuracies": 0.9, "eval_rewards/accuracies_before": 0.0},
            "reward accuracy (0.5 is chance; 0 before training by definition) | 0.0000 | 0.9000",
        ),
        (
            "ebft",
            {"eval_reward": 0.4, "eval_reward_before": -0.2, "eval_loss": 0.0},
            "mean reward | -0.2000 | 0.4000",
        ),
    ],
)
def test_the_card_tells_first_what_the_method_is_for(
    method: str, metrics: dict[str, float], row: str
) -> None:
    card = model_card(make_data(metrics, method=method))
    results = card.split("|---|---|---|\n")[1]
    assert results.startswith(f"| {row} |\n")
    # What an online method calls its loss is about zero however good the answers are.
    assert ("held-out loss" in results) == (method == "sft")


def test_the_card_loads_a_reward_model_as_one() -> None:
    card = model_card(make_data(method="reward", output={"claim": "out", "merged": True}))
    assert 'AutoModelForSequenceClassification.from_pretrained("PATH/merged")' in card
    assert "AutoModelForCausalLM" not in card
    data = ModelCard(card).data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("peft", "text-classification")


def test_the_card_says_what_a_chained_adapter_sits_on() -> None:
    start = ModelStart(base="hf://acme/base", merge=["pvc://models/chain-sft"])
    card = model_card(
        make_data(model={"source": "job://chain-sft"}, starts={"job://chain-sft": start})
    )
    lines = card.splitlines()
    first = lines.index('base = AutoModelForCausalLM.from_pretrained("acme/base")')
    assert lines[first + 1 : first + 3] == [
        'base = PeftModel.from_pretrained(base, "PATH OF pvc://models/chain-sft").merge_and_unload()',
        'model = PeftModel.from_pretrained(base, "PATH")',
    ]
    assert ModelCard(card).data.to_dict()["base_model"] == "acme/base"


def test_the_card_is_read_by_a_hub() -> None:
    data = ModelCard(model_card(make_data(adapter={"type": "full"}))).data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["tags"] == ["finetune-operator", "trl", "sft"]
    # A hub knows no claims.
    assert "base_model" not in data


def test_the_card_counts_what_online_methods_count() -> None:
    card = model_card(make_data(method="grpo", rewards=[{"name": "brief", "builtin": "length"}]))
    assert "3 steps of 4 completions: 12 prompts seen" in card
    assert '"groupSize": 8' in card
    assert '"name": "brief"' in card


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"),
    [(2, 2 / 3, 8), (3, 1.0, 10), (4, 4 / 3, 14), (0, 0.0, 0)],
)
def test_rows_are_counted_though_the_last_step_of_an_epoch_is_smaller(
    steps: int, epochs: float, expected: int
) -> None:
    assert rows_seen(steps, epochs, rows=10, of_a_step=4) == expected
