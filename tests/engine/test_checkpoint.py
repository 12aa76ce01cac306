"""Checkpoints: every layout that loads, and for each kind of damage an error that says where and what to do."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="needs the torch extra")

from guardkit.engine.checkpoint import Checkpoint, locate  # noqa: E402
from guardkit.engine.config import GuardHeads, Qwen3Config  # noqa: E402
from guardkit.errors import ModelLoadError  # noqa: E402
from guardkit.verdict import Category  # noqa: E402
from tests.engine.checkpoints import (  # noqa: E402
    GEN_TEMPLATE,
    STREAM_TEMPLATE,
    reference_lm_logits,
    reference_logits,
    write_gen,
    write_stream,
)

SMALL = {"vocab": 512, "tokenizer": False}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
Shapes = dict[str, tuple[int, ...]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_stream(tmp_path / "stream", **SMALL)


def shapes_of(checkpoint: Checkpoint) -> Shapes:
    return {name: tensor.shape for name, tensor in checkpoint.tensors.items()}


def load(folder: Path, shapes: Shapes | None = None, dtype: Any = torch.float32, **options: Any) -> dict[str, Any]:
    checkpoint = Checkpoint.open(folder)
    return checkpoint.load(shapes or shapes_of(checkpoint), dtype=dtype, device="cpu", **options)


def refused(call: Callable[[], object], *parts: str) -> str:
    """The message of the ModelLoadError that `call` raises, which must hold all `parts`."""
    with pytest.raises(ModelLoadError) as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert part in message
    return message


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors of model.safetensors (read as bytes: a mapped file must not be written to)."""
    tensors = safetensors_torch.load((folder / "model.safetensors").read_bytes())
    change(tensors)
    safetensors_torch.save_file(tensors, folder / "model.safetensors")


# Layouts that load


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_hold_what_a_single_file_holds(folder: Path, tmp_path: Path, shards: int) -> None:
    whole, cut = load(folder), write_stream(tmp_path / "cut", shards=shards, **SMALL)
    assert len(list(cut.glob("*.safetensors"))) == shards
    parts = load(cut)
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_shards_without_an_index_are_all_read(folder: Path, tmp_path: Path) -> None:
    cut = write_stream(tmp_path / "cut", shards=2, **SMALL)
    (cut / "model.safetensors.index.json").unlink()
    assert load(cut).keys() == load(folder).keys()


@pytest.mark.parametrize("stored", [False, True])
def test_an_lm_head_may_or_may_not_be_there(folder: Path, tmp_path: Path, stored: bool) -> None:
    shapes = shapes_of(Checkpoint.open(folder)) | {"lm_head.weight": (512, 64)}
    checkpoint = Checkpoint.open(write_stream(tmp_path / "other", with_lm_head=stored, **SMALL))
    loaded = checkpoint.load(shapes, dtype=torch.float32, device="cpu", optional=("lm_head.weight",))
    assert ("lm_head.weight" in loaded) is stored
    del shapes["lm_head.weight"]
    assert "lm_head.weight" not in checkpoint.load(shapes, dtype=torch.float32, device="cpu")
    assert checkpoint.unused == ()


@pytest.mark.parametrize(("tied", "stored"), [(True, False), (True, True), (False, True)])
def test_gen_stores_its_lm_head_where_it_is_not_tied(tmp_path: Path, tied: bool, stored: bool) -> None:
    checkpoint = Checkpoint.open(write_gen(tmp_path / "gen", tied=tied, with_lm_head=stored, **SMALL))
    checkpoint.require("Qwen3ForCausalLM")
    assert checkpoint.config.tie_word_embeddings is tied
    assert ("lm_head.weight" in checkpoint.tensors) is stored


def test_tensors_nobody_asked_for_are_left_and_listed(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    loaded = checkpoint.load({"model.norm.weight": (64,)}, dtype=torch.float32, device="cpu")
    assert list(loaded) == ["model.norm.weight"]
    assert "category_head.weight" in checkpoint.unused


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_weights_are_cast_as_they_are_read(tmp_path: Path, stored: str) -> None:
    folder = write_stream(tmp_path / "stream", dtype=stored, **SMALL)
    kept = safetensors_torch.load_file(folder / "model.safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load(folder, dtype=dtype)
        assert all(torch.equal(loaded[name], kept[name].to(dtype)) for name in kept)
    assert Checkpoint.open(folder).config.dtype == stored


def test_loaded_weights_outlive_the_file(folder: Path) -> None:
    loaded = load(folder)
    before = loaded["model.norm.weight"].clone()
    (folder / "model.safetensors").write_bytes(b"\0" * (folder / "model.safetensors").stat().st_size)
    assert torch.equal(loaded["model.norm.weight"], before)


def test_code_in_the_folder_is_never_run(folder: Path) -> None:
    assert "auto_map" in json.loads((folder / "config.json").read_text())
    with pytest.raises(RuntimeError, match="was run"):
        exec((folder / "modeling_qwen3_guard.py").read_text())
    load(folder)


def test_opening_loads_no_torch(folder: Path) -> None:
    script = "import sys; from pathlib import Path; from guardkit.engine.checkpoint import Checkpoint\n"
    script += "Checkpoint.open(Path(sys.argv[1])); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


# The test checkpoints themselves


def test_reference_heads_vary_from_token_to_token(folder: Path) -> None:
    pytest.importorskip("transformers", reason="the reference is transformers' Qwen3Model")
    ids = torch.randint(0, 500, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    logits = reference_logits(folder, ids)
    assert [tuple(part.shape) for part in logits] == [(60, 3), (60, 8), (60, 3), (60, 9)]
    assert all(len(set(part.argmax(-1).tolist())) > 1 for part in logits)
    earlier = reference_logits(folder, ids[:30])  # causal, so that a cached run can equal it
    assert torch.allclose(earlier.risk, logits.risk[:30], atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_reference_language_model_is_that_of_transformers(tmp_path: Path, tied: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference is transformers' Qwen3ForCausalLM")
    folder = write_gen(tmp_path / "gen", tied=tied, shards=2, **SMALL)
    model = transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = list(range(40))
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0]
    assert torch.allclose(reference_lm_logits(folder, ids), logits, atol=1e-3)


def test_templates_render_as_the_published_ones() -> None:
    sandbox = pytest.importorskip("jinja2.sandbox", reason="chat templates are Jinja")
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def render(template: str, *turns: tuple[str, str], **options: Any) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return str(environment.from_string(template).render(messages=messages, **options))

    talk = (("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))
    assert render(STREAM_TEMPLATE, *talk) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nb<|im_end|>\n"
    )
    asked = render(STREAM_TEMPLATE, ("user", "q"), ("tool", "t"), add_generation_prompt=True, enable_thinking=False)
    assert asked == (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>user\n<tool_response>\nt\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    query = render(GEN_TEMPLATE, ("assistant", "z"), ("user", "q"), ("tool", "t"), ("user", "r"))
    assert "USER: q\n\nUSER: r\n\n[END]" in query
    assert "Jailbreak" in query
    assert "Refusal" not in query
    assert query.endswith("<think>\n\n</think>\n\n")
    response = render(GEN_TEMPLATE, *talk)
    assert "USER: s\n\nq\n\nASSISTANT: a\n\nUSER: r\n\nASSISTANT: b\n\n[END]" in response
    assert "Jailbreak" not in response
    assert "Refusal" in response


# config.json

BASE: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "rope_theta": 1000000,
}
SOURCE = Path("somewhere/config.json")


def config(**changes: Any) -> Qwen3Config:
    data = {**BASE, **changes}
    return Qwen3Config.from_json({k: v for k, v in data.items() if v != "absent"}, SOURCE)


def test_defaults_are_those_of_qwen3() -> None:
    found = config()
    assert (found.head_dim, found.rms_norm_eps, found.tie_word_embeddings) == (128, 1e-6, False)
    assert (found.eos_token_ids, found.dtype) == ((), None)
    assert config(num_key_value_heads=None).num_key_value_heads == 4


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5},
        {"rope_theta": "absent", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}},
        {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 500000, "rope_type": "default"}, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
    ],
)
def test_rope_theta_in_old_and_new_spelling(spelling: dict[str, Any]) -> None:
    assert config(**spelling).rope_theta == 5e5


@pytest.mark.parametrize("spelling", [{"torch_dtype": "bfloat16"}, {"dtype": "bfloat16"}, {"dtype": "torch.bfloat16"}])
def test_dtype_in_old_and_new_spelling(spelling: dict[str, Any]) -> None:
    assert config(**spelling).dtype == "bfloat16"


def test_one_or_several_end_tokens() -> None:
    assert config(eos_token_id=7).eos_token_ids == (7,)
    assert config(eos_token_id=[7, 5]).eos_token_ids == (7, 5)


@pytest.mark.parametrize(
    "harmless",
    [
        {"use_sliding_window": False, "sliding_window": 4096},
        {"use_sliding_window": True, "sliding_window": None},
        {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 2},
        {"layer_types": ["full_attention", "full_attention"]},
        {"auto_map": {"AutoModel": "x.Y"}, "whatever": 1},
    ],
)
def test_what_changes_no_result_is_accepted(harmless: dict[str, Any]) -> None:
    assert config(**harmless) == config()


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        *[(key, {key: value}) for key in BASE if key != "model_type" for value in ("absent", 0, -1, "64", True)],
        *[(key, {key: 1.5}) for key in BASE if key not in ("model_type", "rope_theta")],
        ("model_type", {"model_type": "llama"}),
        ("model_type", {"model_type": "absent"}),
        ("num_key_value_heads", {"num_key_value_heads": 3}),
        ("head_dim", {"head_dim": 15}),
        ("rms_norm_eps", {"rms_norm_eps": 0}),
        ("rms_norm_eps", {"rms_norm_eps": float("nan")}),
        ("rope_theta", {"rope_theta": float("inf")}),
        ("rope_theta", {"rope_parameters": {"rope_theta": 10000.0}}),
        ("rope_parameters", {"rope_theta": "absent", "rope_parameters": {"rope_type": "default"}}),
        ("rope_parameters", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}}),
        ("rope_parameters", {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}),
        ("rope_parameters", {"rope_parameters": {"rope_theta": "much"}}),
        ("rope_parameters", {"rope_parameters": 4}),
        ("rope_scaling", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("rope_scaling", {"rope_scaling": {"rope_type": "default", "rope_theta": []}}),
        ("use_sliding_window", {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 0}),
        ("use_sliding_window", {"use_sliding_window": "yes"}),
        ("layer_types", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("layer_types", {"layer_types": ["full_attention"]}),
        ("attention_bias", {"attention_bias": True}),
        ("hidden_act", {"hidden_act": "gelu"}),
        ("quantization_config", {"quantization_config": {"quant_method": "fp8"}}),
        ("tie_word_embeddings", {"tie_word_embeddings": "yes"}),
        ("eos_token_id", {"eos_token_id": 512}),
        ("eos_token_id", {"eos_token_id": ["7"]}),
        ("torch_dtype", {"torch_dtype": 16}),
    ],
)
def test_a_config_that_cannot_be_computed_is_refused(key: str, changes: dict[str, Any]) -> None:
    message = refused(lambda: config(**changes), f"{SOURCE}: {key} ")
    value = changes.get(key)
    if isinstance(value, int | str) and value != "absent":
        assert f"is {value!r}" in message


# Labels


def heads(**changes: Any) -> GuardHeads:
    published: dict[str, Any] = {
        "guard_inner_size": 32,
        "num_risk_level": 3,
        "num_category": 8,
        "num_query_risk_level": 3,
        "num_query_category": 9,
    }
    return GuardHeads.from_json({k: v for k, v in {**published, **changes}.items() if v != "absent"}, SOURCE)


def test_published_classes() -> None:
    found = heads()
    assert found.inner_size == 32
    assert found.response_severities == found.query_severities == (0, 2, 1)  # safe, unsafe, controversial
    assert found.response_categories == found.query_categories[:8]
    assert found.query_categories[0] is Category.violent
    assert found.query_categories[8] is Category.jailbreak


@pytest.mark.parametrize("label_maps", ["published", "short"])
def test_every_spelling_of_the_maps_gives_the_published_classes(tmp_path: Path, label_maps: str) -> None:
    checkpoint = Checkpoint.open(write_stream(tmp_path / "stream", label_maps=label_maps, **SMALL))
    assert "query_category_map" in checkpoint.raw
    assert GuardHeads.from_json(checkpoint.raw, checkpoint.source) == heads()


@pytest.mark.parametrize(
    ("label", "category"),
    [
        (' "Violent" ', Category.violent),
        ("sexual content", Category.sexual),
        ("Sexual Content or Sexual Acts", Category.sexual),
        ("Suicide &amp; Self-Harm", Category.self_harm),
        ("Suicide and Self Harm", Category.self_harm),
        ("Personally Identifiable Information", Category.pii),
        ("NON-VIOLENT ILLEGAL ACTS", Category.non_violent_illegal),
    ],
)
def test_labels_are_known_in_any_spelling(label: str, category: Category) -> None:
    found = heads(num_category=1, response_category_map={"0": label})
    assert found.response_categories == (category,)


def test_the_order_of_classes_is_the_maps() -> None:
    found = heads(
        response_risk_level_map={"2": "SAFE", "0": "'unsafe'", "1": "Controversial"},
        num_category="absent",
        response_category_map={1: "PII", 0: "Jailbreak"},
    )
    assert found.response_severities == (2, 1, 0)
    assert found.response_categories == (Category.jailbreak, Category.pii)


@pytest.mark.parametrize(
    ("key", "changes", "parts"),
    [
        ("guard_inner_size", {"guard_inner_size": "absent"}, ["missing"]),
        ("num_category", {"num_category": "absent"}, ["missing"]),
        ("response_category_map", {"num_category": 7}, ["missing", "num_category is 7"]),
        ("response_category_map", {"response_category_map": ["PII"]}, ["class ids to labels"]),
        ("response_category_map", {"response_category_map": {"0": 1}}, ["class ids to labels"]),
        ("response_category_map", {"response_category_map": {"0": "PII"}}, ["0 to 7", "num_category"]),
        ("query_category_map", {"num_query_category": 1, "query_category_map": {"1": "PII"}}, ["0 to 0", "it has 1"]),
        ("query_category_map", {"num_query_category": "absent", "query_category_map": {}}, ["{}"]),
        (
            "query_category_map",
            {"num_query_category": 1, "query_category_map": {"0": "Gossip"}},
            ["class 0", "'Gossip'", "Violent, Non-violent Illegal Acts", "Jailbreak"],
        ),
        (
            "query_category_map",
            {"num_query_category": 2, "query_category_map": {"0": "PII", "1": "pii"}},
            ["classes 0 and 1", "'PII'"],
        ),
        (
            "query_risk_level_map",
            {"query_risk_level_map": {"0": "Safe", "1": "High Risk", "2": "Unsafe"}},
            ["class 1", "'High Risk'", "Safe, Controversial, Unsafe"],
        ),
        ("query_risk_level_map", {"query_risk_level_map": {"0": "Safe", "1": "Safe", "2": "Unsafe"}}, ["once"]),
        ("response_risk_level_map", {"num_risk_level": 2}, ["missing", "num_risk_level is 2"]),
    ],
)
def test_classes_without_a_meaning_are_refused(key: str, changes: dict[str, Any], parts: list[str]) -> None:
    refused(lambda: heads(**changes), f"{SOURCE}: {key} ", *parts)


# Folders


def test_no_config(tmp_path: Path) -> None:
    refused(lambda: Checkpoint.open(tmp_path), str(tmp_path), "no config.json", "name the folder")


def test_the_outer_folder_of_a_cache(tmp_path: Path) -> None:
    inner = write_stream(tmp_path / "snapshots" / COMMIT, **SMALL)
    refused(lambda: Checkpoint.open(tmp_path), "no config.json", str(inner))


@pytest.mark.parametrize("text", ["{", "[1]", "null", "\udcff"])
def test_a_config_that_is_no_json_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(lambda: Checkpoint.open(folder), "config.json", "download")


@pytest.mark.parametrize("found", [["LlamaForCausalLM"], [], None, "Other", [["x"]]])
def test_another_architecture(folder: Path, found: object) -> None:
    edit(folder / "config.json", lambda c: c.update(architectures=found))
    refused(lambda: Checkpoint.open(folder), "config.json", "architecture", "Qwen3ForGuardModel (Qwen3Guard-Stream)")


def test_gen_is_not_stream_nor_stream_gen(folder: Path, tmp_path: Path) -> None:
    stream, gen = Checkpoint.open(folder), Checkpoint.open(write_gen(tmp_path / "gen", **SMALL))
    stream.require("Qwen3ForGuardModel")
    refused(
        lambda: gen.require("Qwen3ForGuardModel"),
        str(gen.source),
        "a Qwen3Guard-Gen checkpoint",
        "not Qwen3Guard-Stream",
        "load Qwen/Qwen3Guard-Stream-0.6B",
    )
    refused(lambda: stream.require("Qwen3ForCausalLM"), "a Qwen3Guard-Stream", "load Qwen/Qwen3Guard-Gen-0.6B")


def test_the_name_to_load_instead_has_the_same_size(tmp_path: Path) -> None:
    gen = Checkpoint.open(write_gen(tmp_path / "gen", hidden=2560, layers=1, vocab=8, tokenizer=False))
    refused(lambda: gen.require("Qwen3ForGuardModel"), "Qwen/Qwen3Guard-Stream-4B")


def test_pickled_weights_only(folder: Path) -> None:
    torch.save(load(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    message = refused(lambda: Checkpoint.open(folder), "safetensors only", "pytorch_model.bin", "save_file")
    (command,) = re.findall(r'python -c "(.*)"', message)
    subprocess.run([sys.executable, "-c", command], cwd=folder, check=True)  # the advice works
    assert load(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(lambda: Checkpoint.open(folder), str(folder), "no *.safetensors", "download")


def test_a_tensor_in_two_files_without_an_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    safetensors_torch.save_file({"model.norm.weight": torch.ones(64)}, folder / "b.safetensors")
    refused(lambda: Checkpoint.open(folder), "model.norm.weight", "a.safetensors", "b.safetensors")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda i: i.pop("weight_map"), ["index.json", "weight_map"]),
        (lambda i: i.update(weight_map=[]), ["index.json", "weight_map"]),
        (lambda i: i["weight_map"].update({"x": "../x.safetensors"}), ["index.json", "x is in '../x.safetensors'"]),
        (lambda i: i["weight_map"].update({"x": "x.bin"}), ["index.json", "'x.bin'"]),
        (lambda i: i["weight_map"].update({"x": 3}), ["index.json", "x is in 3"]),
        (lambda i: i["weight_map"].update({"x": "model-00009.safetensors"}), ["model-00009.safetensors: missing"]),
        (lambda i: i["weight_map"].update({"x": "model-00001-of-00002.safetensors"}), ["of-00002.safetensors: no x"]),
    ],
)
def test_an_index_that_does_not_fit(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], parts: list[str]
) -> None:
    folder = write_stream(tmp_path / "cut", shards=2, **SMALL)
    edit(folder / "model.safetensors.index.json", change)
    refused(lambda: Checkpoint.open(folder), *parts)


# Weights


def test_all_that_does_not_fit_is_told_at_once_before_any_data_is_read(folder: Path) -> None:
    shapes = shapes_of(Checkpoint.open(folder))
    rewrite(folder, lambda t: t.update({"model.norm.weight": torch.full((48,), float("nan"))}))
    rewrite(folder, lambda t: t.pop("category_head.weight"))
    message = refused(
        lambda: load(folder, shapes),
        str(folder),
        "category_head.weight is missing",
        "model.norm.weight: expected [64], found [48] in model.safetensors",
        "one download",
    )
    assert "finite" not in message


def test_a_long_list_of_problems_is_cut(folder: Path) -> None:
    shapes: Shapes = {f"missing.{i}": (1,) for i in range(8)}
    message = refused(lambda: load(folder, shapes), "and 3 more")
    assert message.count("is missing") == 5


def test_an_optional_tensor_must_still_have_its_shape(tmp_path: Path) -> None:
    folder = write_stream(tmp_path / "stream", with_lm_head=True, **SMALL)
    refused(lambda: load(folder, {"lm_head.weight": (1, 1)}, optional=("lm_head.weight",)), "expected [1, 1]")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_plain_floats(folder: Path, dtype: Any) -> None:
    shapes = shapes_of(Checkpoint.open(folder))
    rewrite(folder, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(dtype)}))
    refused(lambda: load(folder, shapes), "model.norm.weight", "in model.safetensors", "unquantised")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    rewrite(folder, lambda t: t["risk_level_head.weight"][1].fill_(value))
    refused(lambda: load(folder), "model.safetensors", "risk_level_head.weight", "not finite", "download")
    assert load(folder, check_finite=False)


def test_weights_that_the_dtype_cannot_hold(folder: Path) -> None:
    rewrite(folder, lambda t: t["risk_level_head.weight"][0].fill_(1e6))
    refused(lambda: load(folder, dtype=torch.float16), "risk_level_head.weight", "float16", "use bfloat16")
    assert load(folder, dtype=torch.bfloat16)


def test_a_device_that_is_not_there(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    shapes = shapes_of(checkpoint)
    refused(lambda: checkpoint.load(shapes, dtype=torch.float32, device="cuda:99"), "model.safetensors", "'cuda:99'")


@pytest.mark.parametrize("left", [0, 5, 8, 100, -1, -5000])
def test_a_file_that_was_cut_off(folder: Path, left: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    refused(lambda: Checkpoint.open(folder), str(file), "bytes", "download the checkpoint again")


def test_a_file_with_more_than_its_header_says(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"\0")
    refused(lambda: Checkpoint.open(folder), str(file), "bytes where its header asks for")


def test_a_pointer_instead_of_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    refused(lambda: Checkpoint.open(folder), "model.safetensors", "git lfs pull")


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"\xff\xfe",
        b"[]",
        b'{"x": 1}',
        b'{"x": {"dtype": "F32", "shape": [1]}}',
        b'{"x": {"dtype": "F32", "shape": ["a"], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": "04"}}',
    ],
)
def test_a_damaged_header(folder: Path, header: bytes) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    refused(lambda: Checkpoint.open(folder), str(file), "damaged safetensors header", "download")


def test_a_file_that_changes_after_it_was_opened(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    (folder / "model.safetensors").write_bytes(b"gone")
    refused(
        lambda: checkpoint.load(shapes_of(checkpoint), dtype=torch.float32, device="cpu"), "model.safetensors", "read"
    )


# Chat templates


def test_chat_template_of_the_tokenizer_config(folder: Path) -> None:
    assert Checkpoint.open(folder).chat_template() == STREAM_TEMPLATE


@pytest.mark.parametrize("config", [{}, {"chat_template": None}])
def test_a_checkpoint_without_a_chat_template(folder: Path, config: dict[str, None]) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    refused(lambda: Checkpoint.open(folder).chat_template(), "no chat template", "chat_template.jinja")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ x }}", "{{ x }}"),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
    ],
)
def test_forms_of_a_chat_template(folder: Path, template: object, expected: str) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert Checkpoint.open(folder).chat_template() == expected


def test_a_template_file_comes_first(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("own file")
    assert Checkpoint.open(folder).chat_template() == "own file"


def test_no_tokenizer_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    refused(lambda: Checkpoint.open(folder).chat_template(), "no chat template", "chat_template.jinja")


@pytest.mark.parametrize("template", [7, {"default": "d"}, [], ["d"], [{"name": "default", "template": 1}]])
def test_a_chat_template_that_is_no_text(folder: Path, template: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    refused(lambda: Checkpoint.open(folder).chat_template(), "tokenizer_config.json", "chat_template")


# Names and hubs


def test_a_folder_is_its_own_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert locate("stream") == Path("stream")
    monkeypatch.setenv("HOME", str(folder.parent))
    assert locate("~/stream") == folder


def test_a_folder_has_no_revisions(folder: Path) -> None:
    refused(lambda: locate(str(folder), "main"), str(folder), "no revisions", "main")


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./org/name", "../org/name", "name", "a/b/c", "org/", "C:\\x"])
def test_a_name_that_is_neither_folder_nor_id(name: str) -> None:
    refused(lambda: locate(name), name, "no such folder", "Qwen/Qwen3Guard-Stream-0.6B")


class Hub:
    """A hub on this machine: one model, one commit, and what was asked of it."""

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, list[str]()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                self._answer(*hub.answer(self.path.partition("?")[0]))

            do_HEAD = do_GET

            def _answer(self, status: int, error: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{len(body)}"')
                if error:
                    self.send_header("X-Error-Code", error)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, the hub's error code, and the body."""
        model = "/org/model"
        if path in (f"/api/models{model}/revision/main", f"/api/models{model}/revision/v1"):
            return 200, "", json.dumps({"id": "org/model", "sha": COMMIT, "siblings": []}).encode()
        if path.startswith(f"/api/models{model}/revision/"):
            return 404, "RevisionNotFound", b""
        if path.startswith(f"/api/models{model}/tree/"):
            files = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in self.files()]
            return 200, "", json.dumps(files).encode()
        if path.startswith(f"{model}/resolve/{COMMIT}/"):
            return 200, "", (self.folder / path.rsplit("/", 1)[1]).read_bytes()
        if path.startswith("/api/models/org/gated"):
            return 403, "GatedRepo", b""
        if path.startswith("/api/models/org/broken"):
            return 500, "", b""
        return 401, "RepoNotFound", b""

    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir())


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub", reason="needs the torch extra")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_text("pickled")
    served = Hub(folder)
    yield served
    served.server.shutdown()
    served.server.server_close()


class Ask:
    """`locate` in a process of its own, since huggingface_hub reads its settings when it is imported."""

    def __init__(self, home: Path):
        self.home = home

    def __call__(self, name: str, revision: str | None = None, **env: str) -> str:
        script = (
            "import sys\nfrom guardkit.engine.checkpoint import locate\nfrom guardkit.errors import GuardkitError\n"
            "try:\n    print(locate(*sys.argv[1:]))\n"
            "except GuardkitError as error:\n    print(type(error).__name__, error)\n"
        )
        settings = {"HF_HOME": str(self.home / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        paths = os.pathsep.join([str(self.home / "packages"), *filter(None, sys.path)])
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "GUARDKIT_"))}
        run = subprocess.run(
            [sys.executable, "-c", script, name, *([revision] if revision else [])],
            env={**inherited, "PYTHONPATH": paths, **settings, **env},
            capture_output=True,
            text=True,
            check=True,
        )
        return run.stdout.strip()

    def package(self, name: str, code: str) -> None:
        """Put a stand-in for an optional package on the path."""
        (self.home / "packages").mkdir(exist_ok=True)
        (self.home / "packages" / f"{name}.py").write_text(code)


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    return Ask(tmp_path)


CLOSED = "http://127.0.0.1:9"  # nothing listens there


def test_a_hub_id_is_downloaded_once_without_code_or_pickles(hub: Hub, ask: Ask) -> None:
    found = Path(ask("org/model", HF_ENDPOINT=hub.url))
    assert sorted(f.name for f in found.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert load(found)
    asked = len(hub.asked)
    assert ask("org/model", HF_ENDPOINT=hub.url) == str(found)
    assert ask("org/model", HF_HUB_OFFLINE="1") == str(found)
    assert len(hub.asked) == asked  # from the cache, without a question to the hub


def test_a_revision_is_pinned(hub: Hub, ask: Ask) -> None:
    found = ask("org/model", "v1", HF_ENDPOINT=hub.url)
    assert found.endswith(COMMIT)
    assert any(path.startswith("/api/models/org/model/revision/v1") for path in hub.asked)
    assert ask("org/model", COMMIT, HF_ENDPOINT=CLOSED) == found
    message = ask("org/model", "v2", HF_ENDPOINT=hub.url)  # another revision is cached; it does not stand in
    assert message.startswith("ModelLoadError org/model: no revision 'v2'")


def test_an_interrupted_download_is_taken_up_again(hub: Hub, ask: Ask) -> None:
    found = Path(ask("org/model", HF_ENDPOINT=hub.url))
    (found / "model.safetensors").unlink()
    assert ask("org/model", HF_ENDPOINT=hub.url) == str(found)
    assert load(found)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("org/unknown", ["no such model", "check the name"]),
        ("org/gated", ["terms", "hf auth login"]),
        ("org/broken", ["500", "'hf download org/broken'", "HF_ENDPOINT", "GUARDKIT_HUB=modelscope"]),
        ("a--b/..", ["check the name"]),
    ],
)
def test_what_the_hub_refuses(hub: Hub, ask: Ask, name: str, parts: list[str]) -> None:
    message = ask(name, HF_ENDPOINT=hub.url)
    assert message.startswith(f"ModelLoadError {name}: ")
    assert all(part in message for part in parts), message


def test_no_network(ask: Ask) -> None:
    pytest.importorskip("huggingface_hub", reason="needs the torch extra")
    message = ask("org/model", HF_ENDPOINT=CLOSED)
    assert message.startswith("ModelLoadError org/model: not cached")
    assert all(part in message for part in ("hf download org/model", "a local folder", "HF_ENDPOINT", "modelscope"))
    assert "unset" not in message
    assert "HF_HUB_OFFLINE is set; unset it" in ask("org/model", HF_HUB_OFFLINE="1")


def test_without_huggingface_hub_the_extra_is_named(ask: Ask) -> None:
    ask.package("huggingface_hub", "raise ImportError('not here')")
    message = ask("org/model")
    assert message.startswith("MissingExtra org/model")
    assert "pip install 'guardkit[torch]'" in message


MODELSCOPE = """
import json
def snapshot_download(model_id, revision=None, **options):
    assert options["allow_patterns"] and not any(p.endswith((".py", ".bin")) for p in options["allow_patterns"])
    with open({log!r}, "a") as log:
        log.write(json.dumps([model_id, revision, bool(options.get("local_files_only"))]) + "\\n")
    if options.get("local_files_only") and not {cached}:
        raise ValueError("not cached")
    if revision == "unknown":
        raise RuntimeError("no such revision")
    return {folder!r}
"""


def modelscope(ask: Ask, folder: Path, cached: bool = False) -> Callable[[], list[list[Any]]]:
    """Install the stand-in; gives what was asked of it: model, revision, local only."""
    log = ask.home / "modelscope.log"
    ask.package("modelscope", MODELSCOPE.format(log=str(log), folder=str(folder), cached=cached))
    return lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_modelscope_when_asked_for(folder: Path, ask: Ask) -> None:
    asked = modelscope(ask, folder)
    assert ask("org/model", GUARDKIT_HUB="modelscope") == str(folder)
    assert asked() == [["org/model", None, True], ["org/model", None, False]]
    assert ask("org/model", "v1", GUARDKIT_HUB="modelscope") == str(folder)
    assert asked()[2:] == [["org/model", "v1", False]]  # its cache could not tell which revision it holds
    message = ask("org/model", "unknown", GUARDKIT_HUB="modelscope")
    assert message.startswith("ModelLoadError org/model at revision 'unknown'")
    assert "no such revision" in message


def test_modelscope_from_its_cache_alone(folder: Path, ask: Ask) -> None:
    (folder / "tokenizer.json").write_text("{}")
    asked = modelscope(ask, folder, cached=True)
    assert ask("org/model", GUARDKIT_HUB="modelscope") == str(folder)
    assert asked() == [["org/model", None, True]]


def test_modelscope_stands_in_for_an_unreachable_hub(folder: Path, ask: Ask) -> None:
    pytest.importorskip("huggingface_hub", reason="needs the torch extra")
    asked = modelscope(ask, folder)
    assert ask("org/model", HF_ENDPOINT=CLOSED) == str(folder)
    before = len(asked())
    assert ask("org/model", "v1", HF_ENDPOINT=CLOSED).startswith("ModelLoadError")  # a pin belongs to its hub
    assert ask("org/model", HF_HUB_OFFLINE="1").startswith("ModelLoadError")
    assert asked()[before:] == [["org/model", None, True]]


def test_modelscope_is_not_asked_where_the_hub_has_no_such_model(hub: Hub, folder: Path, ask: Ask) -> None:
    asked = modelscope(ask, folder)
    assert ask("org/unknown", HF_ENDPOINT=hub.url).startswith("ModelLoadError org/unknown: no such model")
    assert asked() == []


def test_modelscope_is_not_installed(ask: Ask) -> None:
    ask.package("modelscope", "raise ImportError('not here')")
    assert "pip install modelscope" in ask("org/model", GUARDKIT_HUB="modelscope")


def test_a_hub_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARDKIT_HUB", "elsewhere")
    refused(lambda: locate("org/model"), "GUARDKIT_HUB is 'elsewhere'", "huggingface, modelscope")
