"""What a checkpoint's config.json says, validated: the backbone's sizes, the guard heads' classes.

Nothing is taken on trust: a value of the wrong type, a feature that the engine does not compute, or a severity that
guardkit does not know is a `ModelLoadError` that names the file, the key and the value found. Categories may be those
of the model's own training. Loads no torch.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from guardkit.errors import ModelLoadError
from guardkit.verdict import MAX_OWN, MIN_OWN, SEVERITIES, Category, Severity


@dataclass(frozen=True)
class Qwen3Config:
    """The sizes of a Qwen3 backbone, by config.json's names. Defaults are those of Qwen3's own config class.

    eos_token_ids: none, one or several. dtype: what the weights were saved in ("bfloat16"), where the file says so.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    rope_theta: float
    max_position_embeddings: int
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = ()
    dtype: str | None = None

    @staticmethod
    def from_json(data: Mapping[str, Any], source: Path) -> Qwen3Config:
        """Read a config.json that was parsed from `source`. Raises `ModelLoadError`."""
        read = _Reader(data, source)
        read.expect("model_type", "qwen3", default=None)
        read.expect("hidden_act", "silu")
        read.expect("attention_bias", False)
        if data.get("quantization_config") is not None:
            read.refuse("quantization_config", "quantised weights are not supported; use the unquantised checkpoint")
        layers = read.size("num_hidden_layers")
        _refuse_sliding_window(read, layers)

        heads = read.size("num_attention_heads")
        kv_heads = heads if "num_key_value_heads" in data and data["num_key_value_heads"] is None else None
        kv_heads = kv_heads or read.size("num_key_value_heads")
        if heads % kv_heads:
            read.refuse("num_key_value_heads", f"it must divide num_attention_heads ({heads})")
        head_dim = read.size("head_dim", 128)
        if head_dim % 2:
            read.refuse("head_dim", "it must be even (rotary positions turn pairs of channels)")
        vocab_size = read.size("vocab_size")
        return Qwen3Config(
            hidden_size=read.size("hidden_size"),
            intermediate_size=read.size("intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            vocab_size=vocab_size,
            rope_theta=_rope_theta(read),
            max_position_embeddings=read.size("max_position_embeddings"),
            head_dim=head_dim,
            rms_norm_eps=read.number("rms_norm_eps", 1e-6),
            tie_word_embeddings=read.flag("tie_word_embeddings"),
            eos_token_ids=_token_ids(read, "eos_token_id", vocab_size),
            dtype=read.dtype(),
        )


@dataclass(frozen=True)
class GuardHeads:
    """What the classes of Stream's heads mean.

    inner_size: the width between the backbone and the heads. *_severities: by class id, an index into `SEVERITIES`,
    each severity once. *_categories: by class id.
    """

    inner_size: int
    response_severities: tuple[int, ...]
    response_categories: tuple[Category, ...]
    query_severities: tuple[int, ...]
    query_categories: tuple[Category, ...]

    @staticmethod
    def from_json(data: Mapping[str, Any], source: Path) -> GuardHeads:
        """Read Stream's additions to config.json. Raises `ModelLoadError`.

        A map that is missing is taken to be the published one if the number of classes agrees.
        """
        read = _Reader(data, source)
        return GuardHeads(
            inner_size=read.size("guard_inner_size"),
            response_severities=_severities(read, "response_risk_level_map", "num_risk_level"),
            response_categories=_categories(read, "response_category_map", "num_category", _CATEGORIES[:8]),
            query_severities=_severities(read, "query_risk_level_map", "num_query_risk_level"),
            query_categories=_categories(read, "query_category_map", "num_query_category", _CATEGORIES),
        )


@dataclass(frozen=True)
class Categories:
    """What a model names: of prompts and the like, and of responses."""

    query: tuple[Category, ...]
    response: tuple[Category, ...]

    @property
    def all(self) -> tuple[Category, ...]:
        return tuple(dict.fromkeys((*self.query, *self.response)))

    @staticmethod
    def from_json(data: Mapping[str, Any], source: Path) -> Categories:
        """Read a Stream's label maps, or those of a Gen that was trained on its own; without any, Qwen3Guard's nine.
        Raises `ModelLoadError`."""
        if "guard_inner_size" in data:
            heads = GuardHeads.from_json(data, source)
            return Categories(heads.query_categories, heads.response_categories)
        maps = [key for key in ("query_category_map", "response_category_map") if data.get(key) is not None]
        if not maps:
            return PUBLISHED
        read = _Reader({key: data[key] for key in maps}, source)
        found = [_categories(read, key, f"num_{key}", ()) for key in maps]
        return Categories(found[0], found[-1])


PUBLISHED = Categories(tuple(Category), tuple(c for c in Category if c is not Category.jailbreak))
"""Qwen3Guard's, in the order of `Category`."""
# The published class ids.
_RISKS = (Severity.safe, Severity.unsafe, Severity.controversial)
_CATEGORIES = (
    Category.violent,
    Category.sexual,
    Category.self_harm,
    Category.political,
    Category.pii,
    Category.copyright,
    Category.non_violent_illegal,
    Category.unethical,
    Category.jailbreak,
)


class _Reader:
    """Typed access to a parsed config.json."""

    def __init__(self, data: Mapping[str, Any], source: Path):
        self.data, self.source = data, source

    def refuse(self, key: str, why: str) -> NoReturn:
        found = f"is {reprlib.repr(self.data[key])}" if key in self.data else "is missing"
        raise ModelLoadError(f"{self.source}: {key} {found}: {why}")

    def size(self, key: str, default: int | None = None) -> int:
        value = self.data.get(key, default)
        if type(value) is not int or value < 1:
            self.refuse(key, "a positive whole number is needed; download config.json again")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.data.get(key, default)
        if not _positive(value):
            self.refuse(key, "a positive number is needed; download config.json again")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.data.get(key, False)
        if type(value) is not bool:
            self.refuse(key, "true or false is needed; download config.json again")
        return value

    def expect(self, key: str, computed: str | bool, **default: object) -> None:
        """Refuse a value that changes what the model computes; a missing one is `computed` or the given default."""
        value = self.data.get(key, default.get("default", computed))
        if type(value) is not type(computed) or value != computed:
            self.refuse(key, f"guardkit's engine computes {computed!r} only; use a published Qwen3Guard checkpoint")

    def dtype(self) -> str | None:
        key = "dtype" if self.data.get("dtype") is not None else "torch_dtype"
        value = self.data.get(key)
        if value is not None and not isinstance(value, str):
            self.refuse(key, "the name of a dtype is needed, such as 'bfloat16'")
        return value.removeprefix("torch.") if value else None


def _positive(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0  # type: ignore[arg-type, operator]


def _rope_theta(read: _Reader) -> float:
    """From `rope_theta`, or from transformers 5's `rope_parameters`; both, and `rope_scaling`, must ask for no more."""
    thetas = []
    if read.data.get("rope_theta") is not None or read.data.get("rope_parameters") is None:
        thetas.append(read.number("rope_theta"))
    for key in ("rope_parameters", "rope_scaling"):
        rope = read.data.get(key)
        if rope is None:
            continue
        if not isinstance(rope, Mapping):
            read.refuse(key, "an object is needed; download config.json again")
        kind = rope.get("rope_type", rope.get("type", "default"))
        partial = rope.get("partial_rotary_factor", 1.0)
        if kind != "default" or partial != 1 or any(isinstance(v, Mapping) for v in rope.values()):
            read.refuse(key, "guardkit's engine computes plain rotary positions only (rope_type 'default')")
        theta = rope.get("rope_theta", thetas[0] if thetas else None)
        if not _positive(theta):
            read.refuse(key, "its rope_theta must be a positive number; download config.json again")
        thetas.append(float(theta))
    if any(theta != thetas[0] for theta in thetas):
        read.refuse("rope_theta", f"the file names different values of it ({', '.join(f'{t:g}' for t in thetas)})")
    return thetas[0]


def _refuse_sliding_window(read: _Reader, layers: int) -> None:
    why = "guardkit's engine has full attention only; use a published Qwen3Guard checkpoint"
    kinds = read.data.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
            read.refuse("layer_types", why)
        if len(kinds) != layers:
            read.refuse("layer_types", f"there are {len(kinds)} of them and {layers} layers")
    elif read.flag("use_sliding_window") and read.data.get("sliding_window", 4096) is not None:
        first = read.data.get("max_window_layers", 28)
        if type(first) is not int or first < layers:
            read.refuse("use_sliding_window", why)


def _token_ids(read: _Reader, key: str, vocab_size: int) -> tuple[int, ...]:
    value = read.data.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(i) is not int or not 0 <= i < vocab_size for i in ids):
        read.refuse(key, f"token ids from 0 to {vocab_size - 1} are needed; download config.json again")
    return tuple(ids)


def _labels(read: _Reader, key: str, size_key: str, published: int) -> tuple[str, ...] | None:
    """A map's labels by class id; None where there is no map and the published one can stand in."""
    labels = read.data.get(key)
    size = None if size_key not in read.data and labels is not None else read.size(size_key)
    if labels is None:
        if size != published:
            read.refuse(key, f"{size_key} is {size}, not the published {published}, so the classes have no names")
        return None
    if not isinstance(labels, Mapping) or not all(isinstance(label, str) for label in labels.values()):
        read.refuse(key, 'an object from class ids to labels is needed, such as {"0": "Safe"}')
    size = len(labels) if size is None else size
    by_id = {str(i): label for i, label in labels.items()}
    if not size or sorted(by_id) != sorted(str(i) for i in range(size)):
        read.refuse(
            key, f"its keys must be 0 to {size - 1}, one for each class ({size_key}); it has {', '.join(by_id)}"
        )
    return tuple(by_id[str(i)] for i in range(size))


def _severities(read: _Reader, key: str, size_key: str) -> tuple[int, ...]:
    labels = _labels(read, key, size_key, len(_RISKS))
    if labels is None:
        return tuple(SEVERITIES.index(severity) for severity in _RISKS)
    known = {severity.value: i for i, severity in enumerate(SEVERITIES)}
    for i, label in enumerate(labels):
        if _plain(label) not in known:
            read.refuse(key, f"class {i} is named {label!r}; known: Safe, Controversial, Unsafe")
    found = tuple(known[_plain(label)] for label in labels)
    if sorted(found) != sorted(known.values()):
        read.refuse(key, "each of Safe, Controversial and Unsafe must be there once")
    return found


def _categories(read: _Reader, key: str, size_key: str, published: tuple[Category, ...]) -> tuple[Category, ...]:
    labels = _labels(read, key, size_key, len(published))
    if labels is None:
        return published
    found: list[Category] = []
    for i, label in enumerate(labels):
        try:
            category = Category.named(label)
        except ValueError as error:
            read.refuse(key, f"class {i}: {error}")
        if category in found:
            read.refuse(key, f"classes {found.index(category)} and {i} are both '{category.label}'")
        found.append(category)
    own = next((i for i, category in enumerate(found) if category.is_own), None)
    if own is not None and not MIN_OWN <= len(found) <= MAX_OWN:
        read.refuse(
            key,
            f"class {own} is named {labels[own]!r}; own categories come in sets of {MIN_OWN} to {MAX_OWN}; known: "
            + ", ".join(c.label for c in Category),
        )
    return tuple(found)


def _plain(label: str) -> str:
    """A label's letters alone: quotes, blanks and case vary between releases."""
    return "".join(c for c in label.casefold() if c.isalnum())
