"""The log probabilities of an answer's tokens, which say its text once more, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from guardkit import Stage
from guardkit.messages import Part
from guardkit.reading.values import is_name, texts_of
from guardkit_serve.walking import is_token, part_of


def read_logprobs(value: Any) -> tuple[list[str], list[Part]]:
    """The texts that the tokens make, one for each list of them, and whatever else reads as text. Alternatives that are
    tokens are none: each is a word that was not said."""
    joined: list[str] = []
    beside: list[Part] = []
    lists = value if isinstance(value, Mapping) else {"content": value}
    if isinstance(lists.get("tokens"), list):  # of completions
        joined.append("".join(t for t in lists["tokens"] if isinstance(t, str)))
        for there in _listed(lists.get("top_logprobs"), beside):
            beside += [Part(Stage.response, t, "logprobs.top") for t in there if not is_token(t)]
            _walk({str(at): v for at, v in enumerate(there.values())}, "top", beside)
        _walk([t for t in lists["tokens"] if not isinstance(t, str)], "tokens", beside)
        lists = {k: v for k, v in lists.items() if k not in ("tokens", "top_logprobs")}
    for key, entries in lists.items():
        if not is_name(key):
            beside.append(Part(Stage.response, key, "logprobs.(key)"))
        tokens = []
        for entry in _listed(entries, beside):
            token = entry.get("token")
            tokens.append(token if isinstance(token, str) else "")
            _entry(entry, tokens[-1], beside)
            for other in _listed(entry.get("top_logprobs"), beside):
                _entry(other, None, beside)
        joined.append("".join(tokens))
    return [text for text in joined if text], beside


def logprobs_in(value: Any) -> Iterator[tuple[list[str], list[Part]]]:
    """Of each object in `value` that has log probabilities: the texts of theirs that do not stand beside them, and what
    else reads as text."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, Mapping):
            if one.get("logprobs"):
                joined, beside = read_logprobs(one["logprobs"])
                yield [text for text in joined if text not in one.values()], beside
            left += [inner for key, inner in one.items() if key != "logprobs"]
        elif isinstance(one, list):
            left += one


def _listed(value: Any, beside: list[Part]) -> list[Mapping[str, Any]]:
    """The objects of a list; whatever else stands there is walked."""
    if not isinstance(value, list):
        _walk(value, "", beside)
        return []
    _walk([entry for entry in value if not isinstance(entry, Mapping)], "", beside)
    return [entry for entry in value if isinstance(entry, Mapping)]


def _entry(entry: Mapping[str, Any], token: str | None, beside: list[Part]) -> None:
    """One token. token: its text, where that is read already; None: an alternative, which may be any token."""
    rest = {key: value for key, value in entry.items() if key != "top_logprobs"}
    given = rest.get("token")
    if isinstance(given, str):
        del rest["token"]
        if token is None and not is_token(given):
            beside.append(Part(Stage.response, given, "logprobs.token"))
    said = _spelled(rest.get("bytes"))
    if said is not None:
        del rest["bytes"]
        if said and (said != token if token is not None else not is_token(said)):
            beside.append(Part(Stage.response, said, "logprobs.bytes"))
    _walk(rest, "", beside)


def _spelled(numbers: Any) -> str | None:
    """The text that bytes spell, "" for a part of a character; None where they are no such bytes."""
    try:
        raw = bytes(numbers) if isinstance(numbers, list) else None
        return None if raw is None else raw.decode()
    except UnicodeDecodeError:
        return "" if len(numbers) <= 4 else None
    except (TypeError, ValueError):
        return None


def _walk(value: Any, name: str, beside: list[Part]) -> None:
    if value:
        beside += map(part_of, texts_of(value, Stage.response, path=("logprobs", name) if name else ("logprobs",)))
