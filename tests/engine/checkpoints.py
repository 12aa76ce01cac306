"""Small seeded checkpoints in the layout of the published Qwen3Guard weights, and what they must compute.

The files, keys and tensor names are those of the published folders; the weights are random, scaled so that verdicts
vary from token to token, and the chat templates behave like the published ones in our own words. `reference_logits`
runs transformers' `Qwen3Model` and the published heads over the same tensors: the oracle for parity.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

RISKS = ["Safe", "Unsafe", "Controversial"]
CATEGORIES = [
    "Violent",
    "Sexual Content or Sexual Acts",
    "Suicide & Self-Harm",
    "Politically Sensitive Topics",
    "PII",
    "Copyright Violation",
    "Non-violent Illegal Acts",
    "Unethical Acts",
    "Jailbreak",
]
SHORT_CATEGORIES = ['"Violent"', "Sexual Content", "Suicide &amp; Self-Harm", *CATEGORIES[3:]]
IM_END = 151645

# An assistant turn after the last question opens with a think block, empty unless the message brings its own.
STREAM_TEMPLATE = """\
{%- set ns = namespace(last_question=messages | length - 1, in_tools=false) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{% set ns.last_question = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set text = m.content if m.content is string else '' %}
    {%- if m.role == 'tool' %}
        {%- if not ns.in_tools %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + text + '\\n</tool_response>' }}
        {%- set ns.in_tools = not loop.last and messages[loop.index0 + 1].role == 'tool' %}
        {%- if not ns.in_tools %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' }}
        {%- if m.role == 'assistant' %}
            {%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}
            {%- if not thought and '</think>' in text %}
                {%- set thought = text.split('</think>')[0].split('<think>')[-1] %}
                {%- set text = text.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
            {%- if loop.index0 > ns.last_question and (loop.last or thought) %}
                {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
                {%- set text = text.lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {{- text }}
        {%- for call in m.tool_calls or [] %}
            {%- set call = call.function or call %}
            {{- '\\n' if text or not loop.first }}
            {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""

# `add_generation_prompt`, `reasoning_content`, tools, later system and leading assistant messages have no effect.
GEN_TEMPLATE = """\
{%- set judged = 'query' if messages[-1].role == 'user' else 'response' %}
{%- set by = 'USER' if judged == 'query' else 'ASSISTANT' %}
{{- '<|im_start|>user\\nTask: judge the last ' + judged + ' of the ' + by + ': is it safe, and if not, why?\\n\\n' }}
{{- '[POLICY]\\nSafe: nothing harmful in it, and nothing that leads there.\\n' }}
{{- 'Unsafe: harmful, or an open request for harm.\\n' }}
{{- 'Controversial: harmful to some and harmless to others; it depends on who asks, where and what for.\\n\\n' }}
{{- '[CATEGORIES]\\nViolent.\\nNon-violent Illegal Acts.\\nSexual Content or Sexual Acts.\\nPII.\\n' }}
{{- 'Suicide & Self-Harm.\\nUnethical Acts.\\nPolitically Sensitive Topics.\\nCopyright Violation.\\n' }}
{{- 'Jailbreak.\\n' if judged == 'query' }}
{{- '\\n[CONVERSATION]\\n\\nUSER:' }}
{%- set ns = namespace(open=true, asked=false) %}
{%- for m in messages %}
    {%- if m.role == 'system' and loop.first %}
        {{- ' ' + m.content + '\\n\\n' }}
        {%- set ns.open = false %}
    {%- elif m.role == 'user' %}
        {{- (' ' if ns.open else '' if not ns.asked else 'USER: ') + m.content + '\\n\\n' }}
        {%- set ns.open = false %}
        {%- set ns.asked = true %}
    {%- elif m.role == 'assistant' and not loop.first %}
        {{- 'ASSISTANT: ' + m.content + '\\n\\n' }}
    {%- endif %}
{%- endfor %}
{{- '[END]\\n\\nJudge the last ' + judged + ' of the ' + by + ' alone. ' }}
{{- 'The first line is one of: Safety: Safe, Safety: Unsafe, Safety: Controversial.\\n' }}
{{- 'The second line is Categories: and the categories that apply, or None.\\n' }}
{{- 'The third line is Refusal: Yes or Refusal: No.\\n' if judged == 'response' }}
{{- '<|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}
"""


def write_stream(
    folder: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    intermediate: int = 96,
    inner: int = 32,
    vocab: int = 151936,
    positions: int = 8192,
    tied: bool = True,
    shards: int = 1,
    with_lm_head: bool = False,
    dtype: str = "float32",
    seed: int = 0,
    label_maps: str = "published",
    tokenizer: bool = True,
) -> Path:
    """A Qwen3Guard-Stream checkpoint. label_maps: "published", "short" (labels as other releases spell them) or "none".

    tokenizer: whether tokenizer.json, which takes a while to build once, is needed.
    """
    config = _config("Qwen3ForGuardModel", hidden, layers, heads, kv_heads, head_dim, intermediate, vocab, positions)
    config |= {
        "auto_map": {"AutoModel": "modeling_qwen3_guard.Qwen3ForGuardModel"},
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "guard_inner_size": inner,
        "num_risk_level": 3,
        "num_category": 8,
        "num_query_risk_level": 3,
        "num_query_category": 9,
    }
    if label_maps != "none":
        labels = SHORT_CATEGORIES if label_maps == "short" else CATEGORIES
        config["response_risk_level_map"] = config["query_risk_level_map"] = _numbered(RISKS)
        config["response_category_map"], config["query_category_map"] = _numbered(labels[:8]), _numbered(labels)
    shapes = _backbone(hidden, layers, heads, kv_heads, head_dim, intermediate, vocab)
    for prefix, risks, categories in (("", 3, 8), ("query_", 3, 9)):
        shapes[f"{prefix}risk_level_category_pre.weight"] = (inner, hidden)
        shapes[f"{prefix}risk_level_category_layernorm.weight"] = (inner,)
        shapes[f"{prefix}risk_level_head.weight"] = (risks, inner)
        shapes[f"{prefix}category_head.weight"] = (categories, inner)
    if with_lm_head:
        shapes["lm_head.weight"] = (vocab, hidden)
    _write(folder, config, _weights(shapes, getattr(torch, dtype), seed), shards, STREAM_TEMPLATE, tokenizer)
    (folder / "modeling_qwen3_guard.py").write_text("raise RuntimeError('code of a checkpoint was run')\n")
    return folder


def write_gen(
    folder: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    intermediate: int = 96,
    vocab: int = 151936,
    positions: int = 32768,
    tied: bool = True,
    shards: int = 1,
    with_lm_head: bool = False,
    dtype: str = "float32",
    seed: int = 0,
    tokenizer: bool = True,
) -> Path:
    """A Qwen3Guard-Gen checkpoint. lm_head.weight is stored where it is not tied, or `with_lm_head`."""
    config = _config("Qwen3ForCausalLM", hidden, layers, heads, kv_heads, head_dim, intermediate, vocab, positions)
    config |= {"tie_word_embeddings": tied, "torch_dtype": dtype}
    shapes = _backbone(hidden, layers, heads, kv_heads, head_dim, intermediate, vocab)
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    weights = _weights(shapes, getattr(torch, dtype), seed)
    if tied and with_lm_head:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    _write(folder, config, weights, shards, GEN_TEMPLATE, tokenizer)
    return folder


_built: dict[tuple[Any, ...], Path] = {}


def built(root: Path, write: Callable[..., Path] = write_stream, **options: Any) -> Path:
    """A checkpoint with these options, written once a test run: under `root` (such as pytest's base directory) the
    first time. Not to be changed; tests that break one write their own."""
    key = (write.__name__, *sorted(options.items()))
    if key not in _built:
        _built[key] = write(root / f"checkpoint-{len(_built)}", **options)
    return _built[key]


class Logits(NamedTuple):
    """What the heads say at each of n positions, float32 on the CPU: risk [n, 3], category [n, 8] and [n, 9]."""

    risk: Tensor
    category: Tensor
    query_risk: Tensor
    query_category: Tensor


def reference_logits(folder: Path, ids: Sequence[int], dtype: torch.dtype = torch.float32) -> Logits:
    """The published forward of a Stream checkpoint over `ids`, at all positions."""
    model, tensors = _reference(folder, dtype)
    hidden = reference_hidden(folder, ids, dtype)
    found = []
    for prefix in ("", "query_"):
        x = hidden @ tensors[f"{prefix}risk_level_category_pre.weight"].T
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + model.config.rms_norm_eps)
        x = tensors[f"{prefix}risk_level_category_layernorm.weight"] * wide.to(dtype)
        found += [(x @ tensors[f"{prefix}{head}_head.weight"].T).float() for head in ("risk_level", "category")]
    return Logits(*found)


def reference_lm_logits(folder: Path, ids: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """The language model's logits [n, vocab] of a Gen checkpoint over `ids`, at all positions, in float32."""
    _, tensors = _reference(folder, dtype)
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    return (reference_hidden(folder, ids, dtype) @ head.T).float()


def reference_hidden(folder: Path, ids: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """transformers' `Qwen3Model` over `ids`, in one pass without a cache: [n, hidden] after the final norm."""
    model, _ = _reference(folder, dtype)
    with torch.inference_mode():
        return model(input_ids=torch.tensor([list(ids)]), use_cache=False).last_hidden_state[0]  # type: ignore[no-any-return]


@lru_cache(maxsize=4)
def _reference(folder: Path, dtype: torch.dtype) -> tuple[Any, dict[str, Tensor]]:
    from transformers import Qwen3Config, Qwen3Model

    tensors = {k: v.to(dtype) for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}
    config = Qwen3Config(**json.loads((folder / "config.json").read_text()))
    with torch.device("meta"):
        model = Qwen3Model._from_config(config, attn_implementation="eager")
    backbone = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    model.load_state_dict(backbone, assign=True)
    model.rotary_emb = type(model.rotary_emb)(config)  # its buffers are computed, not stored
    return model.eval(), tensors


def _config(
    architecture: str,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    intermediate: int,
    vocab: int,
    positions: int,
) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": min(151643, vocab - 1),
        "eos_token_id": min(IM_END, vocab - 1),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "max_position_embeddings": positions,
        "max_window_layers": layers,
        "model_type": "qwen3",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocab,
    }


def _numbered(labels: Sequence[str]) -> dict[str, str]:
    return {str(i): label for i, label in enumerate(labels)}


def _backbone(
    hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int, intermediate: int, vocab: int
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(layers):
        layer = f"model.layers.{i}."
        shapes |= {
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}mlp.down_proj.weight": (hidden, intermediate),
            f"{layer}mlp.gate_proj.weight": (intermediate, hidden),
            f"{layer}mlp.up_proj.weight": (intermediate, hidden),
            f"{layer}post_attention_layernorm.weight": (hidden,),
            f"{layer}self_attn.k_norm.weight": (head_dim,),
            f"{layer}self_attn.k_proj.weight": (kv_heads * head_dim, hidden),
            f"{layer}self_attn.o_proj.weight": (hidden, heads * head_dim),
            f"{layer}self_attn.q_norm.weight": (head_dim,),
            f"{layer}self_attn.q_proj.weight": (heads * head_dim, hidden),
            f"{layer}self_attn.v_proj.weight": (kv_heads * head_dim, hidden),
        }
    return shapes | {"model.norm.weight": (hidden,)}


def _weights(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """Normal, so scaled that each layer adds about as much as came in, and logits have a deviation of about 2."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            values = 1 + 0.1 * values
            if "self_attn" in name:
                values = 1.4 * values  # queries and keys: attention that picks, not one that averages
        else:
            lively = name.endswith(("head.weight", "embed_tokens.weight"))  # the embedding may be the LM head
            values = values * ((2 if lively else 1) / math.sqrt(shape[1]))
        weights[name] = values.to(dtype)
    return weights


def _write(
    folder: Path, config: dict[str, Any], weights: dict[str, Tensor], shards: int, template: str, tokenizer: bool
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"eos_token_id": config["eos_token_id"], "do_sample": False})
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer"}
    _write_json(folder / "tokenizer_config.json", special | {"chat_template": template})
    if tokenizer:
        from tests.engine.qwen3_tokenizer_builder import cached

        try:
            os.link(cached() / "tokenizer.json", folder / "tokenizer.json")
        except OSError:  # another file system
            shutil.copyfile(cached() / "tokenizer.json", folder / "tokenizer.json")
    weight_map = {}
    for file, names in _split(list(weights), shards):
        save_file({name: weights[name] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if shards > 1:
        total = sum(w.nbytes for w in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _split(names: list[str], shards: int) -> Iterator[tuple[str, list[str]]]:
    if shards == 1:
        yield "model.safetensors", names
    else:
        size = math.ceil(len(names) / shards)
        for i in range(shards):
            yield f"model-{i + 1:05d}-of-{shards:05d}.safetensors", names[i * size : (i + 1) * size]


def _write_json(file: Path, data: object) -> None:
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
