"""JSON, strictly: a key given twice is an error, since whoever reads the record next may take the other value."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any


def parse(text: str) -> Any:
    """The value of a JSON text. Raises ValueError that says what is wrong with it."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} (column {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    except ValueError as error:
        if "integer string" not in str(error):  # a key given twice
            raise
        return _LONG.decode(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"not valid JSON: the key '{twice[:60]}' is given twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_LONG = json.JSONDecoder(object_pairs_hook=_object, parse_int=Decimal)  # for more digits than Python's integers take
