"""A whole answer: every part judged at its own stage, and what is shown in the place of a part that is blocked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole, TextBlock
from llama_index.postprocessor.guardkit.conversions import cleaned
from llama_index.postprocessor.guardkit.marks import mark_of
from llama_index.postprocessor.guardkit.messages import parts_of, read, without
from llama_index.postprocessor.guardkit.rules import Rules, redacted, report
from llama_index.postprocessor.guardkit.steps import Steps

from guardkit import Action, Decision, Message, Stage
from guardkit.messages import Part
from guardkit.reading.values import texts_of


def passable_answer(
    rules: Rules, context: Sequence[Message], response: ChatResponse, *, repairs: int = 0, structured: bool = False
) -> Steps[ChatResponse | Decision]:
    """The answer as it may be shown; or, where repairs are left, the decision for which to ask again.

    context: the question. structured: an object is wanted, so that nothing in it can be redacted.
    """
    clean = cleaned(response)
    parts = parts_of(read(response.message)) + _beside(response)
    decisions: list[Decision] = yield partial(rules.guard.decide_batch, [[*context, part] for part in parts])
    bad = [(p, d) for p, d in zip(parts, decisions, strict=True) if d.action is not Action.allow]
    for _, decision in bad:
        if decision.action is Action.flag:
            report(decision, f"answer ({decision.stage.value})", "flagged")
    bad = [(p, d) for p, d in bad if d.action.stops]
    if bad:
        clean = ChatResponse(**{name: getattr(clean, name) for name in ChatResponse.model_fields} | {"logprobs": None})
    for part, decision in bad:
        where = f"answer ({decision.stage.value})"
        whole = part.tool_calls or part.unjudgeable or part.attached or structured
        if decision.action is Action.redact and not whole:
            text = yield from redacted(rules.guard, part.reasoning or part.content, decision.stage)
            rules.withheld(decision, where, "redacted")
            clean.message = without(clean.message, part, text, decision)
            continue
        if repairs:
            rules.withheld(decision, where, "asked again")
            return decision
        rules.violated(decision, where)
        if rules.exit_behavior == "end":
            return refusal(rules, decision, clean.raw)
        clean.message = without(clean.message, part, rules.message(decision), decision)
    return clean


def _beside(response: ChatResponse) -> list[Message]:
    """What a provider's kind of response has beside the message, such as what was cited."""
    names = type(response).model_fields.keys() - ChatResponse.model_fields.keys()
    aside = {name: getattr(response, name) for name in sorted(names)} | (response.model_extra or {})
    found = texts_of(aside, Stage.document)
    unread = tuple(dict.fromkeys(f.what for f in found if f.text is None))
    text = "\n".join(f.text for f in found if f.text)
    attached = (Part(Stage.document, text, "citation"),) if text else ()
    return [Message("assistant", attached=attached, unjudgeable=unread)] if attached or unread else []


def refusal(rules: Rules, decision: Decision, raw: Any = None) -> ChatResponse:
    """The violation message as an answer, marked with the decision."""
    text, mark = rules.message(decision), mark_of(decision)
    message = ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text=text)], additional_kwargs=mark)
    return ChatResponse(message=message, delta=text, raw=raw, additional_kwargs=dict(mark))
