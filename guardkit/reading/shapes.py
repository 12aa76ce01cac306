"""The shapes of records, one reader each: chats, responses, data sets, documents, and what has no known shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from guardkit.messages import Message, Part
from guardkit.reading import positions as at
from guardkit.reading.drafts import (
    ANSWERS,
    BESIDE,
    CANDIDATES,
    LISTS,
    NUMBERED,
    PAIRS,
    QUESTIONS,
    SYSTEM,
    Draft,
    answer_in,
    context_of,
    first_of,
    holds_text,
    is_chat,
    is_message,
    keys_of,
    kind_of,
    messages_in,
    one_output,
    one_turn,
    quoted,
)
from guardkit.reading.message import read_message
from guardkit.reading.nested import chats_in, read_nested
from guardkit.reading.pieces import PIECES, refuse_piece
from guardkit.reading.values import as_sequence, is_name, texts_of
from guardkit.verdict import Stage


def read_draft(data: Any, shape: str | None, outputs: bool) -> tuple[str, Draft]:
    if shape is not None and shape not in SHAPES:
        raise ValueError(f"unknown shape '{shape}'; known: {', '.join(SHAPES)}")
    # Most records of data sets hold a text and numbers: no need to ask every shape.
    is_plain = type(data) is dict and not outputs and _BEYOND_TEXT.isdisjoint(data)
    for name in _LAST if is_plain and shape is None else SHAPES:
        if shape in (None, name) and (draft := SHAPES[name](data, outputs)) is not None:
            return name, draft
    raise ValueError(f"not of the shape '{shape}'{keys_of(data)}" if shape else f"expected an object{keys_of(data)}")


# ------------------------------------------------------------------------------------------------- shapes, one each


def _plain(data: Any, outputs: bool) -> Draft | None:
    """A JSON string."""
    if not isinstance(data, str):
        return None
    return Draft([], [("", None, [Message("assistant", data)])], ()) if outputs else Draft([], [], (), data)


def _envelope(data: Any, outputs: bool) -> Draft | None:
    """What only wraps another record: LangChain's dumps, OpenAI's batch files, logged requests with their response."""
    if not isinstance(data, Mapping):
        return None
    refuse_piece(data)
    inner = data.get("kwargs")
    if "lc" in data and isinstance(inner, Mapping) and not is_message(data):
        return _inside(inner, "kwargs", ("lc", "type", "id", "kwargs"), outputs)
    body, response = data.get("body"), data.get("response")
    if isinstance(body, Mapping) and ("custom_id" in data or "url" in data or "status_code" in data):
        return _inside(body, "body", ("body",), outputs)
    if isinstance(response, Mapping):
        draft = _inside(response, "response", ("response",), outputs)
        asked = data.get("request", data.get("body"))
        if draft.answers and not draft.messages and is_chat(data.get("messages")):  # a proxy's log
            draft.messages, draft.used = messages_in(data["messages"], "messages"), ("messages", "response")
        elif draft.answers and not draft.messages and isinstance(asked, Mapping):
            context = _inside(asked, "request", ("request",), False)
            draft.messages, draft.used = context.messages, ("request", "response")
        return draft
    if "custom_id" in data and data.get("error"):
        raise ValueError("a request of a batch that failed: there is no response in it")
    return None


def _inside(inner: Mapping[Any, Any], path: str, used: tuple[str, ...], outputs: bool) -> Draft:
    draft = read_draft(inner, None, outputs)[1]
    draft.messages = [(f"{path}.{p}", n, m) for p, n, m in draft.messages]
    draft.answers = [(f"{path}.{p}", n, m) for p, n, m in draft.answers]
    left = [key for key, value in inner.items() if key not in draft.used and holds_text(key, value)]
    draft.ignored = tuple(f"{path}.{key}" for key in (*draft.ignored, *left))
    draft.used = used
    return draft


def _choices(data: Any, outputs: bool) -> Draft | None:
    """Every candidate of a response: OpenAI's ``choices``, Gemini's ``candidates``."""
    key = first_of(data, ("choices", "candidates"))
    if key is None:
        return None
    listed = data[key]
    if isinstance(listed, Mapping) or (isinstance(listed, list) and any(not isinstance(c, Mapping) for c in listed)):
        return None  # of a question in a quiz
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"'{key}' must be a list of objects, with at least one")
    one_output(data, key, outputs)
    answers: list[tuple[str, int | None, list[Message]]] = []
    for i, choice in enumerate(listed):
        given = [name for name in ("message", "text", "delta", "content") if choice.get(name) is not None]
        if len(given) > 1:
            raise ValueError(f"choice {i}: only one of {quoted(given)} can be read")
        if given == ["delta"] or (given == ["text"] and choice.get("finish_reason", "") is None):
            raise ValueError(f"choice {i} is a piece of a stream: join the pieces to one record")
        if not given and any(choice.get(name) for name in ("finish_reason", "finishReason")):
            given = ["content"]  # it was ended before a word
            choice = {**choice, "content": ""}
        if not given:
            raise ValueError(f"choice {i} has no 'message'")
        beside = [name for name in BESIDE if choice.get(name)]
        if beside:
            raise ValueError(
                f"{quoted(beside)} beside '{key}[{i}]': not clear what belongs together; put it into the message"
            )
        told = choice[given[0]]
        source = dict(told) if isinstance(told, Mapping) else {"content": told}
        source |= {k: v for k, v in choice.items() if k not in source and k != given[0]}
        role = {"role": "assistant"} if source.get("role") is None else {}
        answers.append((f"{key}[{i}]", i, [read_message(source | role, i)]))
    context, used = context_of(data)
    return Draft(context, answers, (key, *used))


def _preference(data: Any, outputs: bool) -> Draft | None:
    """Answers to one question, each judged: the better and the worse of two, numbered ones, or a list of them."""
    if not isinstance(data, Mapping):
        return None
    keys: Sequence[str] = next((p for p in PAIRS if all(k in data for k in p)), ())
    keys = keys or [k for k in data if k in NUMBERED and isinstance(data[k], str | list)]
    given = [(key, data[key]) for key in keys if data[key]]
    if len(keys) < 2:
        listed = first_of(data, CANDIDATES)
        if listed is None or not isinstance(data[listed], list) or _is_turn(data[listed]):
            return None
        keys, texts = (listed,), [_candidate(item) for item in data[listed]]
        given = [(f"{listed}[{i}]", text) for i, text in enumerate(texts) if text is not None]
        if len(given) < len(texts):
            return None
    if not given:
        return None
    context, used = context_of(data)
    answers = [(path, i, answer_in(value, path, {})) for i, (path, value) in enumerate(given)]
    return Draft(context, answers, (*keys, *used))


def _candidate(item: Any) -> Any:
    """An answer in a list of them: a text, a message, or an object with one text that is known to be it."""
    if isinstance(item, str):
        return item or None
    if not isinstance(item, Mapping):
        return None
    told = any(isinstance(item.get(key), str) for key in (*ANSWERS, "text", "content"))
    return item if told or is_message(item) else None


def _chat(data: Any, outputs: bool) -> Draft | None:
    """A list of messages, alone or in a request."""
    if isinstance(data, list):
        return Draft(messages_in(data, ""), [], ()) if is_chat(data) else None
    key = first_of(data, LISTS)
    if key is None or (isinstance(data[key], list) and data[key] and not is_chat(data[key])):
        return None  # a chat of people, or turns of another form: all of it is judged
    one_output(data, key, outputs)
    context, used = context_of(data)
    return Draft([*context, *([] if key in used else messages_in(data[key], key))], [], (key, *used))


def _items(data: Any, outputs: bool) -> Draft | None:
    """The Responses API's ``output`` or ``input``, a turn of several items; Bedrock's ``output``."""
    if not isinstance(data, Mapping):
        return None
    key = "output" if data.get("output") is not None or not _is_turn(data.get("outputs")) else "outputs"
    output, asked = data.get(key), data.get("input")
    if isinstance(output, Mapping) and isinstance(output.get("message"), Mapping):
        context, used = context_of(data)
        told = read_message(output["message"], 0, "assistant")
        beside = tuple(f"output.{k}" for k, v in output.items() if k != "message" and holds_text(k, v))
        return Draft(context, [("output.message", None, [told])], ("output", *used), ignored=beside)
    if isinstance(output, list) and output and all(isinstance(item, Mapping) for item in output):
        one_output(data, key, outputs)
        context, used = context_of(data)
        turn = one_turn([read_message(item, i, "assistant") for i, item in enumerate(output)])
        settings = [
            key for key in ("text", "reasoning") if isinstance(data.get(key), Mapping) and _are_names(data[key])
        ]
        return Draft(context, [(key, None, turn)], (key, *settings, *used))
    if isinstance(asked, list) and asked and all(isinstance(m, Mapping) for m in asked) and output is None:
        context, used = context_of({k: v for k, v in data.items() if k != "input"})
        return Draft([*context, *messages_in(asked, "input")], [], ("input", *used))
    return None


def _is_turn(value: Any) -> bool:
    """Whether a list holds the typed items of one turn: of Gemini's interactions, of Mistral's conversations."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) and "type" in v for v in value)


def _are_names(value: Any) -> bool:
    return all(found.text is not None and is_name(found.text, 6) for found in texts_of(value, Stage.prompt))


def _message(data: Any, outputs: bool) -> Draft | None:
    """One message, alone or in ``message``."""
    if not isinstance(data, Mapping):
        return None
    if (protocol := _protocol(data)) is not None:
        return protocol
    inner = data.get("message")
    if isinstance(inner, Mapping) and "role" not in data and (outputs or (is_message(inner) and _is_to_a_model(inner))):
        one_output(data, "message", outputs)
        context, used = context_of(data)
        message = read_message(data["message"], 0, "assistant")
        return Draft(context, [("message", None, [message])], ("message", *used))
    if not is_message(data) or not (outputs or _is_to_a_model(data)):
        return None
    return Draft([], [("", 0 if "role" in data else None, [read_message(data)])], tuple(data))


def _protocol(data: Mapping[Any, Any]) -> Draft | None:
    """A tool's call or result as the Model Context Protocol has them, in JSON-RPC or bare."""
    is_rpc = "jsonrpc" in data
    asked, result = data.get("params"), data.get("result") if is_rpc else data
    if is_rpc and data.get("method") == "tools/call" and isinstance(asked, Mapping):
        told = read_message({"role": "assistant", "content": None, "tool_calls": [asked]})
        return Draft([("params", None, told)], [], ("params", *_RPC))
    if not isinstance(result, Mapping):
        return None
    content = result.get("content", result.get("contents"))
    is_list = isinstance(content, list) and all(isinstance(block, Mapping) for block in content)
    signs = "structuredContent" in result or (is_list and (is_rpc or isinstance(result.get("isError"), bool)))
    if not signs or "role" in result or "messages" in result:
        return None
    told = read_message({"role": "tool", "content": None, **result})
    rest = read_message({"role": "tool", "content": content}) if "contents" in result else told
    return Draft([("result" if is_rpc else "", None, rest)], [], ("result", *_RPC) if is_rpc else tuple(data))


_RPC = ("jsonrpc", "id", "method")


def _is_to_a_model(message: Mapping[Any, Any]) -> bool:
    """Whether a message is one to or from a model; of people it names who wrote it where a role would stand."""
    role = message.get("role", message.get("from"))
    return role is None or at.role_of(role) is not None or (isinstance(role, str) and role.lower() in at.CALL_ROLES)


def _answered(data: Any, outputs: bool) -> Draft | None:
    """An answer with what it answers: ``prompt`` and ``response``, ``instruction``, ``input`` and ``output``."""
    keys = (*ANSWERS, "content", "text") if outputs else ANSWERS
    key = first_of(data, keys)
    if not outputs and key and isinstance(data[key], Mapping) and _wraps_a_chat(data[key]):
        return None
    if not outputs and key == "answer" and type(data[key]) is int and any(k in data for k in ("choices", "options")):
        return None  # which of the choices of a quiz it is
    if not isinstance(data, Mapping) or (key is None and not (outputs and any(data.get(k) for k in BESIDE))):
        null = next((k for k in ANSWERS if k in data), None) if isinstance(data, Mapping) and not outputs else None
        if null is not None and any(k in data for k in QUESTIONS if k != null):
            raise ValueError(f"'{null}' must be a string, not null")
        return None
    if key is not None:
        one_output(data, key, outputs)
    if outputs and data.get("type") not in (None, "ai", "AIMessage"):
        raise ValueError(f"'type' is '{data['type']}': without a 'role', only 'ai' is known to be a model's")
    beside = {name: data[name] for name in BESIDE if data.get(name) is not None}
    context, used = context_of(data, but=key)
    answer = answer_in(data[key] if key else "", key or "", beside)
    return Draft(context, [(key or "", None, answer)], tuple(filter(None, (key, *beside, *used))))


def _is_an_answer(value: Mapping[Any, Any]) -> bool:
    """Whether an object is a message, or holds a text that is known to be one."""
    return is_message(value) or any(isinstance(value.get(key), str | list) for key in (*at.CONTENT, *ANSWERS))


def _wraps_a_chat(value: Mapping[Any, Any]) -> bool:
    return not _is_an_answer(value) and bool(read_nested(value, _known, _SIGNS).attached)


def _document(data: Any, outputs: bool) -> Draft | None:
    """A document with its metadata: LangChain's and LlamaIndex's."""
    if outputs or not isinstance(data, Mapping):
        return None
    key = "page_content" if "page_content" in data else "text" if "class_name" in data else ""
    text = data.get(key)
    if not isinstance(text, str):
        return None
    parts = [text, *(f.text for f in texts_of(data.get("metadata"), Stage.document, names=True) if f.text)]
    attached = tuple(Part(Stage.document, t, "document") for t in ("\n".join(parts),) if t)
    return Draft([("", None, Message("user", attached=attached))], [], (key, "metadata"))


def _text(data: Any, outputs: bool) -> Draft | None:
    """One text: ``text``, ``prompt``, or a question without an answer."""
    key = None if outputs else first_of(data, ("text", *QUESTIONS, "content"))
    if key is None:
        return None
    value = data[key]
    if key == "prompt" and as_sequence(value) and all(isinstance(m, Mapping) for m in value):
        return Draft(messages_in(value, key), [], (key,))
    if not isinstance(value, str):
        if key in ("text", "prompt") and not isinstance(value, Mapping | list):
            raise ValueError(f"'{key}' must be a string, not {kind_of(value)}")
        return None
    used = [k for k in (*SYSTEM, "input") if key == "instruction" and isinstance(data.get(k), str)]
    if used:
        return Draft(
            [("instruction", None, Message("user", "\n".join([value, *(data[k] for k in used)])))], [], (key, *used)
        )
    return Draft([], [], (key,), value)


TOKENS = ("prompt", "input", "inputs", "input_ids", "prompt_token_ids", "token_ids", "tokens")


def _are_tokens(value: Any) -> bool:
    """Whether a prompt is given as the ids of its tokens, or several are."""
    while isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _values(data: Any, outputs: bool) -> Draft | None:
    """Of no known shape: all of it is one text."""
    if outputs and isinstance(data, Mapping | list):
        chats = chats_in(data, _known)
        told = [
            (where, chat[: i + 1]) for where, chat in chats for i, m in enumerate(chat) if m.stage is Stage.response
        ]
        if told:
            return Draft([], [(where, i, messages) for i, (where, messages) in enumerate(told)], ())
        raise ValueError(f"no 'messages', 'response', 'reasoning_content', 'choices' or 'text' in it{keys_of(data)}")
    if not isinstance(data, Mapping | list):
        raise ValueError(f"expected a JSON object or string, got {kind_of(data)}")
    found = texts_of(data, Stage.prompt, names=True)
    if not any(f.text is None or not f.is_key or not is_name(f.text) for f in found):
        if isinstance(data, list):
            raise ValueError("expected an object or text in it, got a list without any")
        raise ValueError(f"no text in it{keys_of(data)}")
    used = tuple(data) if isinstance(data, Mapping) else ()
    message = read_nested(data, _known, _SIGNS, found)
    if isinstance(data, Mapping) and any(_are_tokens(data.get(key)) for key in TOKENS):
        message = replace(message, unjudgeable=(*message.unjudgeable, "token ids"))
    if not message.unjudgeable and not message.attached:
        return Draft([], [], used, message.content)
    return Draft([("", None, message)], [], used)


def _known(data: Any) -> Draft | None:
    """What lies in a value of no known shape, where it is a chat, a message, a response or an answer."""
    if isinstance(data, Mapping) and _BEYOND_TEXT.isdisjoint(data):
        return None
    key = first_of(data, ANSWERS)
    if key is not None and isinstance(data[key], Mapping) and not _is_an_answer(data[key]):
        return None  # what it holds is looked at in its turn
    return next((draft for shape in _NESTED if (draft := shape(data, False)) is not None), None)


SHAPES: dict[str, Callable[[Any, bool], Draft | None]] = {
    "string": _plain,
    "envelope": _envelope,
    "choices": _choices,
    "preference": _preference,
    "messages": _chat,
    "items": _items,
    "message": _message,
    "document": _document,
    "answer": _answered,
    "text": _text,
    "values": _values,
}
"""The shapes of records, in the order in which they are tried."""
_LAST = ("text", "values")
_NESTED = (_choices, _preference, _chat, _items, _message, _document, _answered)
_BEYOND_TEXT = frozenset((
    "jsonrpc", "structuredContent", "isError", "author", "sender", "parts",
    "kwargs", "lc", "type", "body", "response", "request", "custom_id", "url", "status_code", "done", "stop", "object",
    "choices", "candidates", "message", "role", "from", "page_content", "class_name", "input", *LISTS, *ANSWERS,
    *(key for pair in PAIRS for key in pair), *NUMBERED, *CANDIDATES, *PIECES,
))  # fmt: skip
"""Keys without which no shape before the last ones reads an object as its own, nor refuses it."""
_SIGNS = _BEYOND_TEXT | at.TOLD_BY_KEY.keys()
"""Of any known shape's values, a list of messages too, at least one key."""
