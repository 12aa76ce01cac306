"""Every block and item that the makers' own SDKs declare: a text in any of its fields is judged, or said not to be."""

from __future__ import annotations

import copy
import importlib
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import typing_extensions

from guardkit import Message, Stage

MARK = "these marked words"
_WRAPPERS = (typing.Required, typing.NotRequired, typing.Annotated, typing_extensions.Required)
ROOTS = {
    "anthropic.types.ContentBlockParam": "content",
    "anthropic.types.beta.BetaContentBlockParam": "content",
    "openai.types.chat.ChatCompletionMessageParam": "message",
    "openai.types.chat.ChatCompletionContentPartParam": "content",
    "openai.types.responses.response_input_item_param.ResponseInputItemParam": "item",
    "google.genai.types.PartDict": "parts",
}
STAGES = {  # of the kinds whose name does not say it
    "program": Stage.tool_call, "mcp_approval_request": Stage.tool_call, "toolCall": Stage.tool_call,
    "mcp_list_tools": Stage.tool_output, "mcp_tool_listing": Stage.tool_output, "search_result": Stage.document,
    "document": Stage.document, "thinking": Stage.reasoning, "reasoning": Stage.reasoning,
    "function_call": Stage.tool_call, "function_response": Stage.tool_output, "tool_response": Stage.tool_output,
    "executable_code": Stage.tool_call,
}  # fmt: skip
ENDS = dict.fromkeys(("_use", "_call"), Stage.tool_call) | dict.fromkeys(("_result", "_output"), Stage.tool_output)
Path = tuple[Any, ...]


def unwrapped(kind: Any) -> Any:
    while typing.get_origin(kind) in _WRAPPERS:
        kind = typing.get_args(kind)[0]
    return kind


def members(kind: Any) -> list[Any]:
    kind = unwrapped(kind)
    return [m for arg in typing.get_args(kind) for m in members(arg)] if _is_union(kind) else [kind]


def _is_union(kind: Any) -> bool:
    return str(typing.get_origin(kind)) in ("typing.Union", "<class 'types.UnionType'>", "<class 'typing.Union'>")


def example(kind: Any, depth: int = 0) -> Iterator[tuple[Any, list[Path]]]:
    """Values of a declared type, one for each member of a union, with the paths of the texts in them."""
    for member in members(kind):
        origin, args = typing.get_origin(member), typing.get_args(member)
        if origin is typing.Literal:
            yield args[0], []
        elif member in (str, object, Any):
            yield MARK, [()]
        elif typing_extensions.is_typeddict(member):
            yield from _mappings(member, depth)
        elif origin in (dict,) or "Mapping" in str(origin):
            yield {"key": MARK}, [("key",)]
        elif origin is not None and "TypedDict" not in str(member) and args and depth < 4:
            for value, paths in example(args[0], depth + 1):
                yield [value], [(0, *path) for path in paths]


def _mappings(kind: Any, depth: int) -> Iterator[tuple[Any, list[Path]]]:
    """One with the first value of every field, and one for each further value of a field."""
    fields = {} if depth > 4 else typing_extensions.get_type_hints(kind, include_extras=True)
    found = {name: list(example(hint, depth + 1)) for name, hint in fields.items()}
    first = {name: values[0] for name, values in found.items() if values}
    for name, values in found.items():
        for value in values[1:] if first else ():
            given = {n: v for n, v in first.items() if not v[1]} | {name: value}
            yield {n: v for n, (v, _) in given.items()}, [(n, *p) for n, (_, paths) in given.items() for p in paths]
    yield {n: v for n, (v, _) in first.items()}, [(n, *p) for n, (_, paths) in first.items() for p in paths]


def with_text(value: Any, path: Path, text: str) -> Any:
    """`value` with `text` at `path`, and plain words everywhere else."""
    new = copy.deepcopy(value)
    holder: Any = [new]
    for step in (0, *path)[:-1]:
        holder = holder[step]
    holder[path[-1] if path else 0] = text
    return new if path else text


def plainly(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: plainly(v) for k, v in value.items()}
    return [plainly(v) for v in value] if isinstance(value, list) else "x" if value == MARK else value


def cases() -> list[Any]:
    out = []
    for name, place in ROOTS.items():
        module, _, attribute = name.rpartition(".")
        try:
            root = getattr(importlib.import_module(module), attribute)
        except ImportError:
            continue
        for value, paths in example(root):
            if not isinstance(value, dict):
                continue
            kind = value.get("type", value.get("role", ""))
            out += [
                pytest.param(place, plainly(value), path, id=f"{name.split('.')[0]}-{kind}-{'.'.join(map(str, path))}")
                for path in paths
            ]
    return out


CASES = cases()


def message_of(place: str, value: dict[str, Any]) -> Message:
    if place in ("message", "item"):
        return Message.of(value)
    kind = str(value.get("type", ""))
    role = "user" if kind.endswith(("result", "document")) else "assistant"
    return Message.of({"role": role, place: [value]})


@pytest.mark.skipif(not CASES, reason="no SDK is installed")
def test_a_text_in_any_field_that_an_sdk_declares_is_judged_or_said_not_to_be() -> None:
    missed = []
    for case in CASES:
        place, value, path = case.values
        message = message_of(place, with_text(value, path, MARK))
        if not message.unjudgeable and not any(MARK in (part.text or "") for part in message.parts()):
            missed.append(case.id)
    assert missed == []
    assert len(CASES) > 300


@pytest.mark.skipif(not CASES, reason="no SDK is installed")
def test_calls_and_results_that_an_sdk_declares_are_judged_as_such() -> None:
    wrong = {}
    for case in CASES:
        place, value, path = case.values
        kind = str(value.get("type", next(iter(value), "") if place == "parts" else ""))
        stage = STAGES.get(kind)
        if stage is None and not kind.startswith(("tool_search_tool_result_e", "mcp_approval_resp")):
            stage = next((s for end, s in ENDS.items() if kind.endswith(end)), None)
        parts = message_of(place, with_text(value, path, MARK)).parts()
        found = {part.stage for part in parts if MARK in (part.text or "")}
        is_media = kind == "image_generation_call"
        if stage is not None and found and not is_media and not found & {stage, Stage.document, Stage.tool_output}:
            wrong[case.id] = found
    assert wrong == {}
