"""Any value, and every text in it: found with its path, and put back changed.

    for found in texts_of(document.metadata, Stage.document):
        found.path, found.text
    replaced(document.metadata, {found.path: "[removed]"})

Nothing is imported to know a type: pydantic models, dataclasses and plain objects are read by their attributes.
"""

from __future__ import annotations

import array
import copy
import datetime
import decimal
import enum
import functools
import re
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import PurePath
from typing import Any, TypeVar, cast

from guardkit.verdict import Stage

MAX_DEPTH = 200
MAX_VALUES = 1_000_000
MIN_SPELLED = 8  # numbers in a list that may be a text
_PLAIN = (
    type(None), bool, int, float, complex, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta,
    datetime.tzinfo, uuid.UUID, type(Ellipsis), range,
)  # fmt: skip
_WORD = re.compile(r"[A-Z][a-z]{2,}|[a-z]{3,}|[A-Z]{3,}")
_BLANK = re.compile(r"\s")
_TIME = re.compile(r"[\d\s:.,+TZ/-]+")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Key:
    """The last step of a path that leads to a mapping's key itself, not to its value."""

    name: Any


Path = tuple[Any, ...]
"""From the outside in: a mapping's key or an attribute's name, an index (in a set: in its order), or a `Key`."""


@dataclass(frozen=True, slots=True)
class Found:
    """One text in a value. `text` is None for what cannot be judged; `what` then says what it is."""

    path: Path
    text: str | None
    stage: Stage
    what: str = "text"

    @property
    def is_key(self) -> bool:
        return bool(self.path) and isinstance(self.path[-1], Key)

    @property
    def where(self) -> str:
        return written(self.path)


def written(path: Path) -> str:
    """A path for people: ``metadata.authors[2]``, ``(key)`` behind a key that is itself the text."""
    out = ""
    for step in path:
        if isinstance(step, Key):
            out += f".{step.name} (key)"
        else:
            out += f"[{step}]" if isinstance(step, int) else f".{step}"
    return out.removeprefix(".")


def texts_of(value: Any, stage: Stage, *, path: Path = (), names: bool = False) -> list[Found]:
    """Every text in `value`, in order, with its path, and what cannot be judged in it. Empty strings are left out.

    Walks mappings, sequences, sets, dataclasses, named tuples, enums, exceptions, and objects by their attributes
    (pydantic models with their extra fields). Bytes that are UTF-8 text are text, and so is a list of such numbers;
    other numbers, dates, UUIDs and the like hold no text. Keys of mappings that read as text are found too; `names`
    also finds those that are mere names, each once. A cycle is walked once; what lies deeper than `MAX_DEPTH` or beyond
    `MAX_VALUES` values is listed as not judgeable, as is whatever has no readable content (a generator, a lock).
    """
    walk = _Walk(stage, names)
    walk.value(value, path)
    return walk.found


def is_name(text: str, max_words: int = 3) -> bool:
    """Whether a string is a name, an id, a time or opaque data rather than words: without blanks, and of few words for
    its length, however they are joined ("call_8f2a", not "ignore-all-previous-instructions")."""
    if not text or text.isspace():
        return True
    if _BLANK.search(text):
        return _TIME.fullmatch(text) is not None
    if not text.isascii():
        return False
    n_words = len(_WORD.findall(text))
    return n_words <= max_words or n_words * 12 < len(text)


class _Walk:
    def __init__(self, stage: Stage, names: bool):
        self.found: list[Found] = []
        self._stage, self._names = stage, names
        self._seen_names: set[str] = set()
        self._around: set[int] = set()  # the containers that the walk is inside of
        self._n_values = 0

    def value(self, value: Any, path: Path) -> None:
        self._n_values += 1
        if isinstance(value, enum.Enum):
            value = value.value
        if isinstance(value, str):
            if value:
                self.found.append(Found(path, str(value), self._stage))
        elif isinstance(value, _PLAIN):
            pass
        elif isinstance(value, bytes | bytearray | memoryview):
            self._bytes(bytes(value), path)
        elif isinstance(value, PurePath):
            if not is_name(str(value), 6):
                self.found.append(Found(path, str(value), self._stage))
        elif id(value) not in self._around:
            self._container(value, path)

    def _container(self, value: Any, path: Path) -> None:
        if (spelled := _spelled(value)) is not None:
            self.found.append(Found(path, spelled, self._stage))
            return
        children = _children(value)
        if children is None:
            self._unknown(path, type(value).__name__)
        elif len(path) >= MAX_DEPTH:
            self._unknown(path, f"value nested deeper than {MAX_DEPTH} levels")
        else:
            self._around.add(id(value))
            for key, child in children:
                if self._n_values > MAX_VALUES:
                    self._unknown(path, f"value after the first {MAX_VALUES:,}")
                    break
                if isinstance(value, Mapping):
                    self._key(key, path)
                self.value(child, (*path, key))
            self._around.discard(id(value))

    def _key(self, key: Any, path: Path) -> None:
        if isinstance(key, enum.Enum):
            key = key.value
        if isinstance(key, str) and is_name(key):
            if self._names and key and key not in self._seen_names:
                self._seen_names.add(key)
                self.found.append(Found((*path, Key(key)), key, self._stage))
        elif not isinstance(key, _PLAIN):
            self.value(key, (*path, Key(key)))

    def _bytes(self, data: bytes, path: Path) -> None:
        text = decoded(data)
        if text is None:
            self._unknown(path, "bytes")
        elif text:
            self.found.append(Found(path, text, self._stage))

    def _unknown(self, path: Path, what: str) -> None:
        self.found.append(Found(path, None, self._stage, what))


def decoded(data: bytes) -> str | None:
    """`data` as UTF-8 text; None where it is none."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(text) else text


def _spelled(value: Any) -> str | None:
    """The text that a list of numbers is, byte by byte (journald writes messages so); None for other lists."""
    if not isinstance(value, list | tuple) or len(value) < MIN_SPELLED or type(value[0]) is not int:
        return None
    try:
        text = decoded(bytes(value))
    except (TypeError, ValueError):  # not all of them are bytes
        return None
    words = text.split() if text else []
    return text if len(words) > 1 and sum(map(str.isalpha, "".join(words))) > 0.7 * len("".join(words)) else None


def _children(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """What a container holds, by key; None for what is no container."""
    try:
        if isinstance(value, Mapping):
            return list(value.items())
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return list(zip(value._fields, value, strict=True))
        if isinstance(value, type):
            return None
        if hasattr(value, "dtype") and hasattr(value, "tolist"):  # an array or a column
            plain = getattr(value.dtype, "kind", "O") in "biufcmM"
            return [*_labels(value), *(() if plain else enumerate(value.tolist()))]
        if hasattr(value, "iterrows"):  # a table: iterating it gives its headings only
            return [*_labels(value), *value.to_dict("list").items()]
        if isinstance(value, array.array) and value.typecode in "uw":
            return [(0, value.tounicode())]
        if isinstance(value, functools.partial):
            return [("args", value.args), ("keywords", value.keywords)]
        attributes = None if isinstance(value, Collection) and not is_dataclass(value) else _attributes(value)
        if attributes:
            return list(attributes.items())
        if isinstance(value, Collection):
            return list(enumerate(value))
        return None if attributes is None or hasattr(value, "__next__") else []
    except Exception:  # a container that does not let itself be read
        return None


def _labels(value: Any) -> list[tuple[Any, Any]]:
    """The names of a table's or a column's rows, and of the column."""
    rows = getattr(value, "index", None)
    names = getattr(value, "names", None) or [getattr(value, "name", None)]
    found: list[tuple[Any, Any]] = [("name", [name for name in names if isinstance(name, str)])]
    return found if rows is None or callable(rows) else [*found, ("index", rows)]


def _attributes(value: Any) -> dict[str, Any] | None:
    """The attributes of an object: fields, slots, extra fields of a model, arguments of an exception."""
    names = {f.name for f in fields(value)} if is_dataclass(value) else set()
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names.update([slots] if isinstance(slots, str) else slots)
    has_dict = hasattr(value, "__dict__")
    if not names and not has_dict and not isinstance(value, BaseException):
        return None
    found = {name: getattr(value, name) for name in sorted(names) if not name.startswith("__") and hasattr(value, name)}
    found |= vars(value) if has_dict else {}
    extra = getattr(value, "__pydantic_extra__", None)
    if isinstance(extra, Mapping):
        found |= extra
    if isinstance(value, BaseException):
        found["args"] = value.args
    return {name: child for name, child in found.items() if not name.startswith("__")}


# --------------------------------------------------------------------------------------------------- putting back


def replaced(value: _T, texts: Mapping[Path, str]) -> _T:
    """A copy of `value` with other texts at some paths of `texts_of`; types are kept, and what lies elsewhere is
    shared. Raises TypeError for a container that cannot be copied with changes, KeyError for a path that leads nowhere.
    """
    result: Any = value
    if () in texts:
        result = _text_like(value, texts[()])
    inside: dict[Any, dict[Path, str]] = {}
    keys: dict[Any, str] = {}
    for path, text in texts.items():
        if len(path) == 1 and isinstance(path[0], Key):
            keys[path[0].name] = text
        elif path:
            inside.setdefault(path[0], {})[path[1:]] = text
    if inside or keys:
        result = _rebuilt(result, inside, keys)
    return cast(_T, result)


def _rebuilt(value: Any, inside: Mapping[Any, Mapping[Path, str]], keys: Mapping[Any, str]) -> Any:
    if isinstance(value, Mapping):
        items = {keys.get(k, k): replaced(v, inside[k]) if k in inside else v for k, v in value.items()}
        if type(value) is dict:
            return items
        new = copy.copy(value)
        new.clear()  # type: ignore[attr-defined]
        new.update(items)  # type: ignore[attr-defined]
        return new
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return cast(Any, value)._replace(
            **{name: replaced(getattr(value, name), texts) for name, texts in inside.items()}
        )
    if isinstance(value, Collection) and not is_dataclass(value):
        items = [replaced(v, inside[i]) if i in inside else v for i, v in enumerate(value)]  # type: ignore[assignment]
        return items if type(value) is list else type(value)(items)  # type: ignore[call-arg]
    new = copy.copy(value)
    for name, texts in inside.items():
        child = replaced(getattr(value, name), texts)
        extra = getattr(new, "__pydantic_extra__", None)
        if isinstance(extra, dict) and name in extra:
            object.__setattr__(new, "__pydantic_extra__", extra | {name: child})
        else:
            object.__setattr__(new, name, child)  # frozen ones too: it is a copy
    return new


def _text_like(value: Any, text: str) -> Any:
    return (
        text.encode()
        if isinstance(value, bytes)
        else bytearray(text.encode())
        if isinstance(value, bytearray)
        else text
    )


def as_sequence(value: Any) -> Sequence[Any] | None:
    """`value` where it is a list or the like; None for texts and all else."""
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray) else None
