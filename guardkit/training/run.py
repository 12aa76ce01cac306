"""One training run: rows in, a folder out that `Guard.load` opens. The loop is transformers' `Trainer`: one process or
several (`torchrun`, `accelerate launch`), mixed precision, checkpoints, resumption."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guardkit._version import __version__
from guardkit.engine.checkpoint import Checkpoint, locate
from guardkit.engine.setup import pick_dtype
from guardkit.errors import MissingExtra, ModelLoadError, TrainingError
from guardkit.evaluation.metrics import Curve, Rates
from guardkit.models.qwen_tokenizer import QwenTokenizer
from guardkit.training import resuming, templates
from guardkit.training.categories import PUBLISHED, CategorySet, read_categories
from guardkit.training.examples import RISKS, Example, GenExamples, StreamExamples
from guardkit.training.modules import BACKBONES, GenModule, GuardModule, StreamModule, collate
from guardkit.training.resuming import CHECKPOINTS, is_first
from guardkit.training.rows import Tally, read_rows, split
from guardkit.training.saving import save
from guardkit.verdict import Severity

KINDS = ("stream", "gen")
_SHARDED = {
    "FSDP": "ACCELERATE_USE_FSDP",
    "DeepSpeed": "ACCELERATE_USE_DEEPSPEED",
    "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM",
}
_EVALUATIONS = 10  # of a run, unless its settings say otherwise


@dataclass(frozen=True)
class Settings:
    """What a run is told.

    base: a Qwen3 in the transformers layout, a folder or a hub's id (a Qwen3Guard goes on learning). train, dev: files
    of rows; without dev, `dev_share` of the texts. categories: a file; None: Qwen3Guard's. backbone: "lora", "full" or
    "frozen". inner: width between backbone and Stream's heads; None: half of the backbone's. rate: learning rate; None:
    2e-4 for LoRA and heads alone, 2e-5 in full. batch: examples of a step and process, `accumulate` times. precision:
    "auto", "bf16" or "fp32". weights: "balanced" (each severity weighs the same in all), or "none".
    """

    base: str
    train: tuple[Path, ...]
    out: Path
    dev: tuple[Path, ...] = ()
    dev_share: float = 0.05
    categories: Path | None = None
    backbone: str = "lora"
    rank: int = 16
    inner: int | None = None
    epochs: float = 1.0
    steps: int | None = None
    rate: float | None = None
    warmup: float = 0.05
    batch: int = 16
    accumulate: int = 1
    max_tokens: int = 1024
    tail: int = 8
    weights: str = "balanced"
    precision: str = "auto"
    checkpointing: bool = False
    every: int | None = None
    resume: bool = False
    skip_bad: bool = False
    max_rows: int | None = None
    seed: int = 0
    cpu: bool = False
    revision: str | None = None


@dataclass
class Result:
    """out: the trained guard. dev: figures of the dev split; baseline: those of always the commonest severity."""

    out: Path
    dev: dict[str, float | None]
    baseline: dict[str, float | None]
    tally: Tally
    too_long: int
    n_train: int
    n_dev: int
    seconds: float
    steps: int
    log: list[dict[str, Any]] = field(default_factory=list)


def train(kind: str, settings: Settings) -> Result:
    """Train a "stream" or a "gen". Raises `TrainingError`, `ModelLoadError` or `MissingExtra`."""
    trainer_of = _transformers()
    _check(settings)
    checkpoint = Checkpoint.open(locate(settings.base, settings.revision))
    categories = PUBLISHED if settings.categories is None else read_categories(settings.categories)
    tokenizer = QwenTokenizer(checkpoint.folder, checkpoint.config.vocab_size)
    template = _template(kind, checkpoint, categories)
    rows, tally = read_rows(settings.train, categories, skip_bad=settings.skip_bad, most=settings.max_rows)
    read = [tally]
    if settings.dev:
        dev_rows, dev_tally = read_rows(settings.dev, categories, skip_bad=settings.skip_bad, most=settings.max_rows)
        read.append(dev_tally)
    else:
        rows, dev_rows = split(rows, settings.dev_share, settings.seed)
    most = min(settings.max_tokens, checkpoint.config.max_position_embeddings)
    framing: StreamExamples | GenExamples
    if kind == "stream":
        framing = StreamExamples(checkpoint.folder, template, tokenizer, categories, settings.tail)
    else:
        framing = GenExamples(checkpoint.folder, template, tokenizer, categories)
    made, dev = ([framing.of(row, most) for row in part] for part in (rows, dev_rows))
    examples, dev_examples = [e for e in made if e is not None], [e for e in dev if e is not None]
    too_long = len(made) + len(dev) - len(examples) - len(dev_examples)
    if not examples:
        raise TrainingError(f"nothing to learn from: {tally}; {too_long:,} rows with more than {most} tokens")
    asked = resuming.asked(kind, asdict(settings), *read)
    if settings.resume:
        resuming.check(settings.out, asked)
    torch.manual_seed(settings.seed)
    module = _module(kind, checkpoint, categories, framing, settings, examples)
    module.train_backbone(settings.backbone, settings.rank, 2 * settings.rank)
    if settings.checkpointing:
        module.checkpoint_activations()
    _say(f"{tally}\n{len(examples):,} to learn from, {len(dev_examples):,} in the dev split; {too_long:,} too long")
    begin = time.monotonic()
    trainer = trainer_of(module, settings, examples, dev_examples, tokenizer.special("<|endoftext|>"))
    resuming.remember(settings.out, asked)
    done = trainer.train(resume_from_checkpoint=resuming.last(settings.out) if settings.resume else None)
    figures = trainer.evaluate() if dev_examples else {}
    result = Result(
        settings.out,
        {k.removeprefix("eval_"): v for k, v in figures.items() if k.startswith("eval_") and k[5:] in _FIGURES},
        _measure(_always_commonest(dev_examples), _severities(dev_examples)) if dev_examples else {},
        tally,
        too_long,
        len(examples),
        len(dev_examples),
        time.monotonic() - begin,
        int(done.global_step),
        trainer.state.log_history,
    )
    if trainer.is_world_process_zero():
        save(kind, checkpoint, module, categories, template, settings.out, _record(kind, settings, result))
        shutil.rmtree(settings.out / CHECKPOINTS, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return result


def _check(settings: Settings) -> None:
    for name, variable in _SHARDED.items():
        if os.environ.get(variable, "").lower() in ("true", "1", "yes", "on"):
            raise TrainingError(
                f"{name} splits the model among processes, and here each holds the whole one: torchrun, "
                "or accelerate launch without it; LoRA, --checkpointing and --accumulate save memory"
            )
    if settings.backbone not in BACKBONES:
        raise TrainingError(f"unknown way to train the backbone '{settings.backbone}'; known: {', '.join(BACKBONES)}")
    if (settings.out / "config.json").exists():
        raise TrainingError(f"{settings.out} holds a model already: name another folder")
    if (settings.out / CHECKPOINTS).exists() and not settings.resume:
        raise TrainingError(f"{settings.out} holds checkpoints of a run: --resume goes on with it, or name another")


def _template(kind: str, checkpoint: Checkpoint, categories: CategorySet) -> str:
    """The base's own where it fits, else ours."""
    try:
        own = checkpoint.chat_template()
    except ModelLoadError:
        own = ""
    if kind == "stream":
        return own if own and "Safety:" not in own else templates.STREAM
    return own if "Safety:" in own and not categories.is_own else templates.gen(categories)


def _module(
    kind: str,
    checkpoint: Checkpoint,
    categories: CategorySet,
    framing: StreamExamples | GenExamples,
    settings: Settings,
    examples: Sequence[Example],
) -> GuardModule:
    from transformers import Qwen3Config, Qwen3Model

    config = Qwen3Config.from_dict(checkpoint.raw)
    backbone = Qwen3Model.from_pretrained(str(checkpoint.folder), config=config, dtype=torch.float32)
    if kind == "gen":
        head = None
        if not checkpoint.config.tie_word_embeddings:
            name, shape = "lm_head.weight", (checkpoint.config.vocab_size, checkpoint.config.hidden_size)
            head = checkpoint.load({name: shape}, dtype=torch.float32, device="cpu")[name]
        assert isinstance(framing, GenExamples)
        return GenModule(backbone, head, framing.choices, _weights(settings, examples))
    weights = tuple(_weights(settings, [e for e in examples if e.is_query is side]) for side in (True, False))
    inner = settings.inner or checkpoint.raw.get("guard_inner_size") or max(checkpoint.config.hidden_size // 2, 1)
    module = StreamModule(backbone, inner, len(categories.query), len(categories.response), (weights[0], weights[1]))
    _go_on(module, checkpoint)
    return module


def _go_on(module: StreamModule, checkpoint: Checkpoint) -> None:
    """Take the heads of a base that has them, as far as they have the same shape."""
    own = {name: t for name, t in module.state_dict().items() if not name.startswith("model.")}
    shapes = {
        name: tuple(t.shape)
        for name, t in own.items()
        if name in checkpoint.tensors and checkpoint.tensors[name].shape == tuple(t.shape)
    }
    if shapes:
        module.load_state_dict(checkpoint.load(shapes, dtype=torch.float32, device="cpu"), strict=False)


def _weights(settings: Settings, examples: Sequence[Example]) -> Tensor:
    """Of the risk classes [3]: so that each one that is there weighs the same in all, 10 at the most."""
    counts = np.bincount(_severities(examples), minlength=len(RISKS)).astype(float)
    if settings.weights == "none" or not counts.any():
        return torch.ones(len(RISKS))
    even = counts.sum() / max(np.count_nonzero(counts), 1)
    return torch.tensor(np.where(counts > 0, np.minimum(even / np.maximum(counts, 1), 10.0), 1.0), dtype=torch.float32)


def _transformers() -> Any:
    """How a trainer is made; imports what the extra brings."""
    try:
        import accelerate  # noqa: F401
        from transformers import Trainer, TrainingArguments
    except ImportError as error:
        raise MissingExtra("training", "train") from error

    class _Trainer(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return ByLength(
                [len(example) for example in self.train_dataset], self.args.train_batch_size, self.args.seed
            )

    def make(module: GuardModule, settings: Settings, examples: list[Example], dev: list[Example], pad: int) -> Any:
        per_epoch = math.ceil(len(examples) / (settings.batch * settings.accumulate * resuming.processes()))
        steps = settings.steps or math.ceil(per_epoch * settings.epochs)
        every = settings.every or max(steps // _EVALUATIONS, 1)
        rate = settings.rate or (2e-5 if settings.backbone == "full" else 2e-4)
        device = torch.device("cuda" if torch.cuda.is_available() and not settings.cpu else "cpu")
        bf16 = settings.precision == "bf16" or (
            settings.precision == "auto" and pick_dtype(None, device) is torch.bfloat16
        )
        args = TrainingArguments(
            output_dir=str(settings.out / CHECKPOINTS),
            num_train_epochs=settings.epochs,
            max_steps=settings.steps or -1,
            per_device_train_batch_size=settings.batch,
            per_device_eval_batch_size=settings.batch,
            gradient_accumulation_steps=settings.accumulate,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(settings.warmup * steps),
            weight_decay=0.01,
            bf16=bf16,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=device.type != "cpu",
            eval_strategy="steps" if dev else "no",
            eval_steps=every,
            save_strategy="steps",
            save_steps=every,
            save_total_limit=2,
            logging_steps=max(min(every, 50), 1),
            label_names=["severity"],
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,
            report_to=[],
            disable_tqdm=not sys.stderr.isatty(),
            seed=settings.seed,
        )
        return _Trainer(
            model=module,
            args=args,
            data_collator=partial(collate, pad=pad),
            train_dataset=examples,
            eval_dataset=dev or None,
            compute_metrics=lambda found: _measure(np.asarray(found.predictions), np.asarray(found.label_ids)),
        )

    return make


class ByLength(torch.utils.data.Sampler):  # type: ignore[misc]
    """A random order in which neighbours are about as long, so that little of a batch is padding. It depends on seed
    and epoch alone: a run that is resumed in a later epoch goes on as it would have."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int):
        self._lengths, self._batch, self._seed, self._epoch = np.array(lengths), batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng((self._seed, self._epoch))
        order = draw.permutation(len(self._lengths))
        batches: list[Any] = []
        for at in range(0, len(order), 50 * self._batch):
            part = order[at : at + 50 * self._batch]
            part = part[np.argsort(-self._lengths[part], kind="stable")]
            batches += [part[i : i + self._batch] for i in range(0, len(part), self._batch)]
        last = batches.pop() if batches else []  # the short one stays last
        for i in draw.permutation(len(batches)):
            yield from batches[i].tolist()
        yield from map(int, last)


# ---------------------------------------------------------------------------------------------------------- figures

_FIGURES = ("macro_f1", "ap_strict", "ap_loose", "accuracy", "loss")


def _measure(risks: np.ndarray[Any, Any], severity: np.ndarray[Any, Any]) -> dict[str, float | None]:
    """Of probabilities [n, 3] and true classes [n], both in the order of `RISKS`."""
    said = risks.argmax(1)
    f1 = [Rates.of(said == c, severity == c).f1 for c in range(len(RISKS)) if (severity == c).any()]
    unsafe = RISKS.index(Severity.unsafe)
    return {
        "macro_f1": sum(f or 0.0 for f in f1) / max(len(f1), 1),
        "ap_strict": Curve.of(1.0 - risks[:, 0].astype(float), severity > 0).average_precision,
        "ap_loose": Curve.of(risks[:, unsafe].astype(float), severity == unsafe).average_precision,
        "accuracy": float((said == severity).mean()),
    }


def _severities(examples: Sequence[Example]) -> np.ndarray[Any, Any]:
    return np.array([e.severity for e in examples], np.int64)


def _always_commonest(examples: Sequence[Example]) -> np.ndarray[Any, Any]:
    counts = np.bincount(_severities(examples), minlength=len(RISKS))
    return np.eye(len(RISKS))[np.full(len(examples), counts.argmax())]


def _record(kind: str, settings: Settings, result: Result) -> dict[str, Any]:
    """What a trained guard was made of, for its folder."""
    told = {k: v for k, v in asdict(settings).items() if k != "out"}
    return {
        "guardkit": __version__,
        "kind": kind,
        "settings": json.loads(json.dumps(told, default=str)),
        "data": asdict(result.tally),
        "n_train": result.n_train,
        "n_dev": result.n_dev,
        "too_long": result.too_long,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "dev": result.dev,
        "dev_of_the_commonest_severity": result.baseline,
    }


def _say(text: str) -> None:
    if is_first():
        print(text, file=sys.stderr, flush=True)
