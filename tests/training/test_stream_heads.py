"""Stream's heads, trained: the folder is a published one's, and judges as the rows said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from guardkit import Category, Guard, Severity
from guardkit.engine.checkpoint import Checkpoint
from guardkit.errors import TrainingError
from guardkit.models.qwen_tokenizer import QwenTokenizer
from guardkit.training.categories import PUBLISHED
from guardkit.training.examples import IGNORED, StreamExamples
from guardkit.training.modules import StreamModule, collate
from guardkit.training.rows import row_of
from guardkit.training.run import Settings, train
from guardkit.training.templates import STREAM
from tests.engine.checkpoints import reference_logits
from tests.training.conftest import Made, run
from tests.training.small import rows, write_rows

TENSORS = {
    f"{side}{name}.weight"
    for side in ("", "query_")
    for name in ("risk_level_category_pre", "risk_level_category_layernorm", "risk_level_head", "category_head")
}


def test_it_learned_and_beats_the_commonest_severity(stream: Made) -> None:
    assert (stream.result.dev["macro_f1"] or 0) > 0.9 > 0.5 > (stream.result.baseline["macro_f1"] or 1)
    assert (stream.result.dev["ap_strict"] or 0) > 0.95


def test_the_folder_has_the_published_layout(stream: Made) -> None:
    checkpoint = Checkpoint.open(stream.folder)
    assert checkpoint.architecture == "Qwen3ForGuardModel"
    assert {name for name in checkpoint.tensors if not name.startswith("model.")} == TENSORS
    assert checkpoint.raw["response_risk_level_map"] == {"0": "Safe", "1": "Unsafe", "2": "Controversial"}
    assert (checkpoint.raw["num_category"], checkpoint.raw["num_query_category"]) == (8, 9)
    assert stream.guard.model.query_categories == PUBLISHED.query
    assert not (stream.folder / "checkpoints").exists()
    told = json.loads((stream.folder / "training.json").read_text())
    assert told["data"]["rows"] == 800
    assert told["dev"] == stream.result.dev


def test_it_judges_prompts_responses_and_streams(stream: Made) -> None:
    guard, asked = stream.guard, {"role": "user", "content": "say it"}
    assert guard.check("we walk along the river with bread").severity is Severity.safe
    found = guard.check("the garden and the sword with tea")
    assert (found.severity, found.categories[0]) == (Severity.unsafe, Category.violent)
    text = "the garden is green and the passport is with the letters"
    found = guard.check([asked, {"role": "assistant", "content": text}])
    assert (found.severity, found.categories[0]) == (Severity.unsafe, Category.pii)
    at = text.index("passport")
    assert found.char_index is not None
    assert at <= found.char_index <= at + len("passport is the")
    with guard.stream([asked]) as watched:
        shown = "".join(e.text for word in text.split(" ") for e in watched.feed(word + " ") if e.kind == "text")
    assert "passport" not in shown
    assert watched.verdict.char_index == found.char_index


def test_training_frames_a_text_as_the_engine_does(stream: Made) -> None:
    tokenizer = QwenTokenizer(stream.folder)
    framing = StreamExamples(stream.folder, (stream.folder / "chat_template.jinja").read_text(), tokenizer, PUBLISHED)
    texts = ["the river", "<think>\nthe sword\n</think>\n\nno tea", " tea\n", "näh ☕ <|im_end|> x"]
    for text in texts:
        for record, item in (
            ({"prompt": text}, text),
            ({"prompt": "say it", "response": text}, [{"role": "user", "content": "say it"}]),
        ):
            example = framing.of(row_of({"severity": "safe", **record}, PUBLISHED), 512)  # type: ignore[arg-type]
            assert example is not None
            logits = reference_logits(stream.folder, example.ids.tolist())
            risks = logits.query_risk if example.is_query else logits.risk
            expected = risks[example.at].softmax(0)[0].item()
            if isinstance(item, str):
                found = stream.guard.check(item).scores
            else:
                with Guard(stream.guard.model, policy={"name": "w", "rules": [{"action": "flag"}]}).stream(
                    item, debounce=10**6
                ) as watched:
                    watched.feed(text)
                    watched.finish()
                found = watched.verdict.scores
            assert found["safe"] == pytest.approx(expected, abs=2e-3), (text, record)


@pytest.mark.parametrize("text", ["one two three", "x" * 40, "a\n\nb  c", "näh ☕👩‍👩‍👧 ok", "<think>a b</think>c d"])
def test_tokens_are_unsafe_from_the_place_on(stream: Made, text: str) -> None:
    tokenizer = QwenTokenizer(stream.folder)
    framing = StreamExamples(stream.folder, (stream.folder / "chat_template.jinja").read_text(), tokenizer, PUBLISHED)
    previous = None
    for at in range(len(text)):
        record = {"prompt": "p", "response": text, "severity": "controversial", "unsafe_from": at}
        example = framing.of(row_of(record, PUBLISHED), 512)  # type: ignore[arg-type]
        assert example is not None
        told = [int(label) for label in example.labels if label != IGNORED]
        n_safe = told.count(0)
        assert told == [0] * n_safe + [2] * (len(told) - n_safe)
        assert told[-1] == 2
        assert previous is None or n_safe >= previous
        previous = n_safe
    unknown = framing.of(row_of({**record, "unsafe_from": None}, PUBLISHED), 512)  # type: ignore[arg-type]
    assert unknown is not None
    assert [int(label) for label in unknown.labels if label != IGNORED] == [2] * min(len(told), 8)


def test_every_head_has_a_gradient_in_every_batch(root: Path) -> None:
    """Processes that train together wait for it: also where a batch has prompts alone."""
    from transformers import Qwen3Config, Qwen3Model

    checkpoint = Checkpoint.open(root / "base")
    module = StreamModule(Qwen3Model(Qwen3Config.from_dict(checkpoint.raw)), 8, 9, 8)
    module.train_backbone("lora", 2, 4)
    framing = StreamExamples(root / "base", STREAM, QwenTokenizer(root / "base"), PUBLISHED)
    for record in ({"prompt": "tea"}, {"prompt": "say it", "response": "tea"}):
        example = framing.of(row_of({"severity": "safe", **record}, PUBLISHED), 512)  # type: ignore[arg-type]
        assert example is not None
        module.zero_grad()
        found = module(**collate([example, example], 0))
        found["loss"].backward()
        assert found["risk"].sum(1).tolist() == pytest.approx([1, 1])
        missing = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing


def test_a_frozen_backbone_stays_and_lora_is_merged(root: Path) -> None:
    base = load_file(root / "base" / "model.safetensors")
    for backbone, moved in (("frozen", set()), ("lora", {"q_proj", "down_proj", "v_proj"})):
        made = run("stream", root, backbone, backbone=backbone, rank=4, steps=3, checkpointing=backbone == "lora")
        found = load_file(made.folder / "model.safetensors")
        assert {name for name in found if name.startswith("model.")} == set(base)
        changed = {name for name in base if not found[name].equal(base[name])}
        assert moved <= {name.split(".")[-2] for name in changed}
        assert all("_proj" in name for name in changed)
        assert bool(changed) is bool(moved)


def test_a_trained_guard_goes_on_learning(stream: Made, root: Path) -> None:
    made = run("stream", root, "again", base=str(stream.folder), backbone="frozen", steps=1, rate=1e-9)
    assert (made.result.dev["macro_f1"] or 0) > 0.9


def test_what_cannot_be_trained_is_refused(
    stream: Made, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"base": str(root / "base"), "train": (root / "rows.jsonl",), "cpu": True}
    with monkeypatch.context() as launched:
        launched.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch --use_fsdp` does
        with pytest.raises(TrainingError, match="FSDP splits the model"):
            train("stream", Settings(out=tmp_path / "new", **told))  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="holds a model already"):
        train("stream", Settings(out=stream.folder, **told))  # type: ignore[arg-type]
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    with pytest.raises(TrainingError, match="--resume"):
        train("stream", Settings(out=tmp_path / "begun", **told))  # type: ignore[arg-type]
    short = write_rows(tmp_path / "long.jsonl", rows(4))
    with pytest.raises(TrainingError, match="4 rows with more than 4 tokens"):
        train("stream", Settings(out=tmp_path / "new", **told | {"train": (short,), "max_tokens": 4, "dev_share": 0.0}))  # type: ignore[arg-type]
