"""What holds the project's shape: exports, import weight and direction."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import guardkit

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "langchain_core", "llama_index", "pydantic", "tokenizers", "opentelemetry")
# Data flows one way; a module imports only from rows above its own.
LAYERS = (
    ("ticket", "rounds", "ort", "spinning"),
    ("_version", "errors", "verdict", "pages.text"),
    ("pages",),
    ("loop", "telemetry.names", "awaiting"),
    ("telemetry",),
    ("telemetry.watch", "telemetry.prometheus"),
    ("reading", "reading.positions", "reading.jsontext", "reading.values", "reading.json_values", "reading.encodings"),
    ("messages", "disguises", "sentences", "languages", "audit_text"),
    ("telemetry.otel",),
    ("normalize.draft", "normalize.words", "reading.payloads", "reading.speakers"),
    ("reading.message",),
    ("reading.drafts", "reading.pieces"),
    ("reading.nested",),
    ("reading.streams",),
    ("reading.shapes",),
    ("reading.records",),
    (
        "normalize.letters",
        "normalize.spelling",
        "normalize.escapes",
        "normalize.encodings",
        "normalize.ciphers",
        "normalize.codes",
        "normalize.blanks",
    ),
    ("normalize.unwrap", "normalize.apart"),
    ("normalize", "coverage", "locate"),
    ("models.base", "policy_file", "policy_values"),
    ("models.logits",),
    (
        "policy",
        "retokenize",
        "engine",
        "engine.config",
        "models.nano.units",
        "models.nano.opaque",
        "models.qwen_tokenizer",
    ),
    ("models.nano.unigram",),
    ("models.gen_grammar", "models.gen_messages", "models.word_tokenizer", "models.loop_thread"),
    ("models.remote_client",),
    ("models.remote_answer",),
    (
        "engine.checkpoint",
        "engine.qwen3",
        "engine.paged_attention",
        "engine.kernels",
        "engine.template",
        "engine.staging",
        "engine.host_memory",
    ),
    ("engine.cache", "engine.onnx_graph", "engine.stored_embedding"),
    ("engine.onnx_qwen3",),
    ("engine.int8", "engine.sequence", "engine.limits", "engine.paged_cache"),
    ("engine.graphs",),
    ("engine.model_runner", "engine.prefixes"),
    ("engine.waiting",),
    ("engine.scheduler",),
    ("engine.engine",),
    ("engine.setup", "engine.reading", "models.nano.pace", "models.nano.calibration", "models.nano.graph"),
    ("models.nano.said", "models.nano.screen", "models.nano.queries"),
    ("models.nano.session",),
    ("models.nano.scheduler",),
    (
        "models.nano",
        "models.nano.model",
        "models.simple",
        "models.stream",
        "models.gen_walk",
        "models.gen",
        "models.remote",
    ),
    ("models.nano.vectors",),
    ("audit", "webhook", "response", "runner"),
    ("judge",),
    (
        "pinpoint",
        "models.registry",
    ),
    ("models",),
    ("process.wire", "process.start", "process.telling"),
    ("process.connection", "process.peer"),
    ("process.link",),
    ("process.model",),
    ("process", "process.server"),
    ("events",),
    ("stream", "batch"),
    ("astream",),
    ("guard",),
    (
        "testing",
        "redact",
        "adapters",
        "adapters.chat_models",
        "adapters.transformers",
        "trace_parts",
        "evaluation",
        "evaluation.specs",
        "evaluation.metrics",
    ),
    ("rewards.judged",),
    ("rewards.safety",),
    ("rewards.hybrid",),
    ("rewards", "rewards.adapters", "rewards.demo_prompts", "rewards.demo_plot", "rewards.demo_relevance"),
    ("rewards.demo_measure",),
    ("rewards.demo_train",),
    ("rewards.demo",),
    ("rollback.result", "rollback.draft", "rollback.detokenizer", "rollback.words", "rollback.transport"),
    ("rollback.local", "rollback.steps"),
    ("rollback.server",),
    ("rollback.rollback",),
    ("rollback", "rollback.chat"),
    ("trace_worst",),
    ("trace", "evaluation.rows", "evaluation.locations"),
    ("evaluation.sources", "evaluation.predictions", "evaluation.spans"),
    ("evaluation.columns",),
    ("evaluation.figures",),
    ("evaluation.runner", "evaluation.report", "evaluation.charts"),
    ("evaluation.page",),
    (
        "labelling.rows",
        "labelling.packed",
        "labelling.store",
        "labelling.labels",
        "labelling.choosing",
        "labelling.agreement",
    ),
    ("labelling.lines", "labelling.judging", "labelling.progress"),
    ("labelling.csv_rows",),
    ("labelling.inputs",),
    ("labelling.writers",),
    ("labelling.tables", "labelling.jobs", "labelling.labeller", "labelling.splits"),
    ("labelling.output", "labelling.saved", "labelling.planning", "labelling.report"),
    ("labelling.run",),
    ("labelling.ray_engine",),
    ("labelling.manifest",),
    ("labelling",),
    ("training", "training.categories"),
    ("training.rows", "training.templates"),
    ("training.examples", "training.resuming"),
    ("training.modules",),
    ("training.saving",),
    ("training.run",),
    ("training.__main__",),
    ("training.halves", "training.files", "training.annotators", "training.logistic"),
    ("training.light", "training.cross", "training.heads"),
    ("training.confusion", "training.doubt"),
    ("training.labels",),
    ("training.boundary", "training.continuing"),
    ("training.token_search",),
    ("training.tokens",),
    ("",),
)


def test_every_export_exists() -> None:
    for name in guardkit.__all__:
        assert getattr(guardkit, name) is not None
    assert sorted(guardkit.__all__) == guardkit.__all__


def _loaded(code: str, *args: str) -> set[str]:
    script = f"{code}\nimport sys; print('|'.join(sys.modules), file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=False)
    return {name.split(".")[0] for name in run.stderr.splitlines()[-1].split("|")}


def test_importing_guardkit_loads_nothing_heavy() -> None:
    loaded = _loaded("import guardkit")
    assert not loaded & {*HEAVY, "numpy", "onnxruntime", "yaml", "rich"}


def test_checking_loads_nothing_heavy() -> None:
    loaded = _loaded("from guardkit import Guard; Guard.load().check('hello')")
    assert not loaded & {*HEAVY, "yaml", "rich"}


def test_modules_import_downwards_only() -> None:
    level = {name: i for i, row in enumerate(LAYERS) for name in row}
    for path in sorted((ROOT / "guardkit").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "guardkit").with_suffix("").parts).removesuffix("__init__").rstrip(".")
        assert name in level, f"{name} has no row in LAYERS"
        for node in ast.parse(path.read_text()).body:  # lazy imports inside functions may go anywhere
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("guardkit"):
                target = (node.module or "").removeprefix("guardkit").lstrip(".")
                inner = [f"{target}.{alias.name}".lstrip(".") for alias in node.names]  # modules of a package
                for each in inner if all(i in level for i in inner) else [target]:
                    assert level[each] <= level[name], f"{name} imports {each}"


def test_the_core_imports_no_integration() -> None:
    for path in (ROOT / "guardkit").rglob("*.py"):
        text = path.read_text()
        assert "guardkit_cli" not in text
        assert "guardkit_serve" not in text
        assert not re.search(r"import (langchain|llama_index)|from (langchain|llama_index)", text), path


def test_modules_can_be_read_at_one_sitting() -> None:
    for folder in ("guardkit", "cli", "serve", "integrations"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 420, path
