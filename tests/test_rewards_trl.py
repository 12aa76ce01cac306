"""TRL's GRPO trainer really trains with the rewards: plain and conversational data, sync and async, beside others."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="TRL is not installed: pip install 'guardkit[rl]'")
pytest.importorskip("datasets")

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from guardkit.rewards import HybridReward, SafetyReward, demo_measure, per_sample
from guardkit.testing import FakeGuard
from tests.rollback import tiny


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """More only get in each other's way where a model is this small."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SCRIPT: dict[str, Any] = {"forbidden": "unsafe", "crash": RuntimeError("boom")}


def train(folder: Path, rewards: list[Any], prompts: list[Any], **columns: list[Any]) -> dict[str, float]:
    """Two steps; what was logged, the last of each name."""
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    config = GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
        logging_steps=1, max_steps=2, per_device_train_batch_size=4, num_generations=4, max_completion_length=8,
        importance_sampling_level="sequence", loss_type="grpo", learning_rate=1e-3,
    )  # fmt: skip
    rows = Dataset.from_dict({"prompt": prompts, **columns})
    trainer = GRPOTrainer(
        tiny.model(), reward_funcs=rewards, args=config, train_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    assert trainer.state.global_step == 2
    return {name: value for row in trainer.state.log_history for name, value in row.items()}


def test_safety_and_hybrid_rewards_train(tmp_path: Path) -> None:
    guard = FakeGuard(SCRIPT)
    seen: list[dict[str, Any]] = []

    def helpful(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.append(columns)
        return [float(i) for i in range(len(completions))]

    safety = SafetyReward(guard)
    hybrid = HybridReward(guard, helpful, refusals=lambda p, c: [False] * len(c))
    logged = train(tmp_path, [safety, hybrid], ["What do tomatoes need?"] * 4, source=["a", "b", "c", "d"])
    assert logged["rewards/safety_reward/mean"] == 1.0
    assert logged["rewards/hybrid_reward/mean"] == 1.5
    assert logged["guard/safe"] == 1.0
    assert logged["guard/not_judged"] == 0.0
    assert {"source", "completion_ids", "trainer_state"} <= set(seen[0])
    assert len(safety.found) == 4


def test_conversations_and_async_rewards_train(tmp_path: Path) -> None:
    asks = [[{"role": "user", "content": "What do tomatoes need?"}]] * 4
    hybrid = HybridReward(
        FakeGuard(SCRIPT), per_sample(lambda p, c: float(len(c[0]["content"]))), refusals=lambda p, c: [False] * len(c)
    )
    logged = train(tmp_path, [SafetyReward(FakeGuard(SCRIPT)).as_async(), hybrid.as_async()], asks)
    assert logged["rewards/safety_reward/mean"] == 1.0
    assert logged["rewards/hybrid_reward/mean"] > 0
    assert logged["guard/safe"] == 1.0


def test_what_was_not_judged_is_left_out_of_the_group(tmp_path: Path) -> None:
    class Broken(FakeGuard):
        def decide_batch(self, items: Any, **settings: Any) -> Any:
            return [self.not_judged("boom", d.stage, None) for d in super().decide_batch(items, **settings)]

    both = [SafetyReward(Broken(SCRIPT)), lambda completions, **_: [1.0] * len(completions)]
    both[1].__name__ = "other"  # type: ignore[attr-defined]
    logged = train(tmp_path, both, ["What do tomatoes need?"] * 4)
    assert logged["guard/not_judged"] == 1.0
    mean = logged["rewards/safety_reward/mean"]
    assert mean is None or math.isnan(mean)  # no number among its rewards; older versions of TRL log that as NaN
    assert logged["reward"] == 1.0


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the tiny chat model."""
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "llm")
    tiny.model().save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def test_the_demonstration_runs(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft", reason="PEFT is not installed: pip install 'guardkit[rl]'")
    from guardkit.rewards.demo import main

    out = tmp_path / "out"
    options = ["--answers", "2", "--tokens", "4", "--requests", "3", "--samples", "2", "--refusals", "0", "--soft"]
    assert main(["--llm", str(saved), "--out", str(out), "--steps", "2", "4", *options]) == 0
    told = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    assert list(told["figures"]) == ["before", "guard-only", "hybrid"]
    # Two steps are one generation, and no more than asked for.
    assert [len(rows) for rows in told["logs"].values()] == [1, 2]
    for rows in told["logs"].values():
        assert any("harmful/safe" in row or "harmless/refused" in row for row in rows)
    assert (out / "steps.svg").read_text(encoding="utf-8").startswith("<svg")
    assert "| harmful: safe |" in capsys.readouterr().out
    given = json.loads((out / "answers.json").read_text(encoding="utf-8"))
    assert [len(given["hybrid"][kind]) for kind in ("harmful", "harmless")] == [6, 6]
    # Judged again, by the same guard and as another one: the same figures.
    assert demo_measure.main([str(out / "answers.json"), "--judge", "nano", "--llm", str(saved)]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    again = {name: values for name, *values in rows}
    assert "harmless: relevance" in told["figures"]["hybrid"]
    for name, value in told["figures"]["hybrid"].items():
        assert again[name][-1] == f"{value:.3g}"
    assert again["harmful: safe, by nano"] == again["harmful: safe"]


def test_the_demonstration_goes_on_where_it_was_ended(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft", reason="PEFT is not installed: pip install 'guardkit[rl]'")
    from guardkit.rewards.demo import main

    out = tmp_path / "out"
    options = ["--answers", "2", "--tokens", "4", "--requests", "2", "--refusals", "0", "--keep", "--beta", "0.1"]
    told = ["--llm", str(saved), "--out", str(out), "--reward", "hybrid", "--guard", "nano", "nano", *options]
    assert main([*told, "--steps", "4"]) == 0
    first = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    assert all("kl" in row for row in first["logs"]["hybrid"])
    del first["figures"]["hybrid"]
    (out / "figures.json").write_text(json.dumps(first), encoding="utf-8")  # as if it had been ended in the training
    assert main([*told, "--steps", "8", "--resume"]) == 0
    second = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    assert second["figures"]["before"] == first["figures"]["before"]
    steps = [row["step"] for row in second["logs"]["hybrid"]]
    assert steps[: len(first["logs"]["hybrid"])] == [row["step"] for row in first["logs"]["hybrid"]]
    assert len(steps) == 4
    assert "step 7" in capsys.readouterr().out


def test_relevance_is_what_the_answer_adds_by_the_model_without_its_adapters() -> None:
    pytest.importorskip("peft", reason="PEFT is not installed: pip install 'guardkit[rl]'")
    import torch

    from guardkit.rewards.demo_relevance import Relevance
    from guardkit.rewards.demo_train import adapt

    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    asked, told = ["What do tomatoes need?", "Peas?", "Peas?"], ["Sun and water", "rain", "Peas!"]
    model = adapt(tiny.model()).eval()
    together = Relevance(model, tokenizer).information(asked, told)
    alone = [Relevance(model, tokenizer).information([a], [t])[0] for a, t in zip(asked, told, strict=True)]
    assert together == pytest.approx(alone, abs=1e-4)
    assert together[0] != 0
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.fill_(1.0)
    assert Relevance(model, tokenizer).information(asked, told) == pytest.approx(together, abs=1e-4)
    assert Relevance(model, tokenizer).information(["Peas?"], [""]) == pytest.approx([0.0], abs=1e-5)


def test_requests_with_both_unsafe_answers_and_others_are_kept(saved: Path) -> None:
    from guardkit.rewards.demo_train import telling

    class Scripted(FakeGuard):
        def decide_batch(self, items: Any, **settings: Any) -> Any:
            of = {"mixed": itertools.cycle(("forbidden", "fine")), "bad": itertools.cycle(("forbidden",))}
            texts = [next(of[asked]) if (asked := item[0].content) in of else "fine" for item in items]
            return super().decide_batch(texts, **settings)

    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    guard = Scripted({"forbidden": "unsafe"})
    asked = ["good", "mixed", "bad"]
    assert telling(guard, tiny.model(), tokenizer, asked, 4, 3) == ["mixed"]
    assert telling(guard, tiny.model(), tokenizer, ["good", "bad"], 4, 3) == ["good", "bad"]


def test_the_demonstration_teaches_some_refusals_and_no_more() -> None:
    pytest.importorskip("peft", reason="PEFT is not installed: pip install 'guardkit[rl]'")
    from guardkit.rewards.demo_train import adapt, warm_up

    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = adapt(tiny.model())
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learning
    assert all(".layers.1." in name for name in learning)  # the upper half of two
    start, before = warm_up(model, tokenizer, 0.0, refusal=" hmm")
    assert start == 0
    assert warm_up(model, tokenizer, 1.0, refusal=" hmm", most=2)[0] == 2
    steps, after = warm_up(model, tokenizer, 2 * before, refusal=" hmm", learning_rate=0.01)
    assert 0 < steps < 200  # weights this small and random hardly say anything else than all tokens alike
    assert 2 * before <= after < 4 * before
