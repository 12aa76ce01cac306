"""What is judged in a node, and what becomes of the node: kept, flagged, redacted or dropped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from llama_index.core.schema import BaseNode, ImageNode, IndexNode, MediaResource, MetadataMode, Node
from llama_index.postprocessor.guardkit.rules import REDACTED, Rules, bare, redacted, report, worst
from llama_index.postprocessor.guardkit.steps import Steps

from guardkit import Action, Category, Decision, Guard, Message, Severity, Stage
from guardkit.reading.values import Found, Key, is_name, replaced, texts_of

OnBlock = Literal["drop", "redact", "flag"]
Media = Literal["on_error", "keep"]
Outcome = Literal["kept", "flagged", "redacted", "dropped"]

ACTION_KEY = "guardkit_action"
SEVERITY_KEY = "guardkit_severity"
CATEGORIES_KEY = "guardkit_categories"
_KEYS = (ACTION_KEY, SEVERITY_KEY, CATEGORIES_KEY)
_WORDS = {"", "none", *(a.value for a in Action), *(s.value for s in Severity)}


@dataclass(frozen=True)
class Screened:
    """One node and what became of it. node: None where it was dropped; media: images or the like decided."""

    node_id: str
    node: BaseNode | None
    decision: Decision
    outcome: Outcome
    media: bool = False


@dataclass(frozen=True)
class NodeRules:
    """How nodes are screened.

    on_block: what becomes of a node that the policy blocks. media: images, audio and video follow the policy's
    `on_error` ("on_error"), or pass ("keep"). batch_size: nodes handed to the guard at once.
    """

    rules: Rules
    on_block: OnBlock = "drop"
    media: Media = "on_error"
    batch_size: int = 256

    @property
    def guard(self) -> Guard:
        return self.rules.guard

    def screen(self, nodes: Sequence[BaseNode]) -> Steps[list[Screened]]:
        """Judge nodes in batches; one result a node, in order. Reports every one that is not plainly kept."""
        results: list[Screened] = []
        for at in range(0, len(nodes), self.batch_size):
            batch = nodes[at : at + self.batch_size]
            items = [self._items(node) for node in batch]
            flat = [item for some in items for item in some]
            decisions: list[Decision] = yield partial(self.guard.decide_batch, flat, stage=Stage.document)
            start = 0
            for node, some in zip(batch, items, strict=True):
                results.append((yield from self._settle(node, some, decisions[start : start + len(some)])))
                start += len(some)
        return results

    def _settle(self, node: BaseNode, items: list[str | list[Message]], decisions: list[Decision]) -> Steps[Screened]:
        decision = worst(decisions)
        if decision.action is Action.allow:
            return Screened(node.node_id, node, bare(decision), "kept")
        media = any(d.action.stops and not isinstance(i, str) for i, d in zip(items, decisions, strict=True))
        wanted = {"drop": "dropped", "redact": "redacted", "flag": "flagged"}[self.on_block]
        outcome: Any = {Action.flag: "flagged", Action.redact: "redacted", Action.block: wanted}[decision.action]
        kept: BaseNode | None = None
        if outcome == "flagged":
            kept = _marked(node, decision)
        elif outcome == "redacted" and not media:
            kept = yield from self._redacted(node, decision)
        if kept is None:
            outcome = "dropped"
        if outcome == "flagged":
            report(decision, named(node.node_id), outcome)
        else:
            self.rules.withheld(decision, named(node.node_id), outcome)
        return Screened(node.node_id, kept, bare(decision), outcome, media)

    def _items(self, node: BaseNode) -> list[str | list[Message]]:
        """The texts that may reach a prompt from this node, and a message for each thing that cannot be judged."""
        shown = node.get_content(MetadataMode.LLM) or node.get_metadata_str(MetadataMode.LLM)
        items: list[str | list[Message]] = [shown]
        found = _found_in(node, self.guard.categories)
        aside = "\n".join(dict.fromkeys(_line(f) for f in found if f.text and f.text.strip() and f.text not in shown))
        if aside:
            items.append(aside)
        if isinstance(node, IndexNode) and isinstance(node.obj, BaseNode):
            items += self._items(node.obj)
        kinds = [f.what for f in found if f.text is None]
        if self.media == "on_error":
            kinds += _media(node)
        return [*items, *([Message("user", unjudgeable=(kind,))] for kind in dict.fromkeys(kinds))]

    def _redacted(self, node: BaseNode, decision: Decision) -> Steps[BaseNode | None]:
        """A copy whose every text passes, or None where there is none."""
        text = yield from redacted(self.guard, node.get_content(MetadataMode.NONE), Stage.document)
        found = [f for f in texts_of(node.metadata, Stage.document, names=True) if f.text]
        texts = [f.text or "" for f in found]
        decisions: list[Decision] = yield lambda: self.guard.decide_batch(texts, stage=Stage.document)
        bad = [f for f, d in zip(found, decisions, strict=True) if d.action.stops]
        for drop in (bad, found):  # what passes piece by piece may not pass together
            copy = _rewritten(node, text, drop)
            items = self._items(copy)
            again: list[Decision] = yield partial(self.guard.decide_batch, items, stage=Stage.document)
            if not any(d.action.stops for d in again):
                return _marked(copy, decision)
            text = REDACTED
        return None


def _marked(node: BaseNode, decision: Decision) -> BaseNode:
    """A copy that says in its metadata what was found; neither prompts nor embeddings see that."""
    verdict = decision.verdict
    copy = node.model_copy()
    copy.metadata = node.metadata | {
        ACTION_KEY: decision.action.value,
        SEVERITY_KEY: verdict.severity.value if verdict else "none",
        CATEGORIES_KEY: ",".join(c.value for c in verdict.categories) if verdict else "",
    }
    copy.excluded_llm_metadata_keys = [*dict.fromkeys([*node.excluded_llm_metadata_keys, *_KEYS])]
    copy.excluded_embed_metadata_keys = [*dict.fromkeys([*node.excluded_embed_metadata_keys, *_KEYS])]
    return copy


def _rewritten(node: BaseNode, text: str, bad: Sequence[Found]) -> BaseNode:
    """A copy with another text, without the bad texts of its metadata (values keep their types), and with nothing else
    that may repeat them."""
    copy = node.model_copy()
    kept = {k: v for k, v in node.metadata.items() if not any(f.path == (Key(k),) for f in bad)}
    for key in list(kept):
        inside = {f.path[1:]: REDACTED for f in bad if f.path[0] == key and not f.is_key}
        if any(f.path[0] == key and f.is_key for f in bad):
            kept[key] = REDACTED
        elif inside:
            try:
                kept[key] = replaced(kept[key], inside)
            except (TypeError, KeyError, ValueError):  # a value that does not let itself be changed
                kept[key] = REDACTED
    copy.metadata = kept
    gone = node.metadata.keys() - kept.keys()
    copy.excluded_llm_metadata_keys = [k for k in node.excluded_llm_metadata_keys if k not in gone]
    copy.excluded_embed_metadata_keys = [k for k in node.excluded_embed_metadata_keys if k not in gone]
    copy.relationships = {
        kind: [i.model_copy(update={"metadata": {}}) for i in related]
        if isinstance(related, list)
        else related.model_copy(update={"metadata": {}})
        for kind, related in node.relationships.items()
    }
    copy.embedding = None  # of the text as it was
    if isinstance(copy, ImageNode):
        copy.text_embedding = None
    if isinstance(copy, IndexNode):
        copy.obj = None
    if node.get_content(MetadataMode.NONE):
        copy.set_content(text)
    return copy


# Fields of nodes that hold no text of a document, but for what does not look the part, or are read by name below.
# Whatever else a kind of node has is read.
_SILENT = (
    "id_", "index_id", "metadata_template", "metadata_separator", "metadata_seperator", "text_template", "mimetype",
    "image", "image_path", "image_url", "image_mimetype", "excluded_embed_metadata_keys", "excluded_llm_metadata_keys",
)  # fmt: skip
_READ_APART = frozenset((
    *_SILENT, "embedding", "text_embedding", "metadata", "relationships", "obj", "start_char_idx", "end_char_idx",
    "text", "class_name",
))  # fmt: skip
_DATA = re.compile(r"[A-Za-z0-9+/=_-]*")


def _found_in(node: BaseNode, categories: Sequence[Category]) -> list[Found]:
    """Every text beside the node's own, with keys: metadata of any type, that of related nodes, an index node's object,
    captions of media, and fields that a node of another kind has."""
    metadata = {k: v for k, v in node.metadata.items() if not _is_own_mark(k, v, categories)}
    found = texts_of(metadata, Stage.document, names=True)
    for related in node.relationships.values():
        for info in related if isinstance(related, list) else [related]:
            found += texts_of(info.metadata, Stage.document, names=True)
            found += _odd([info.node_id, info.hash, info.node_type])
    for name in _SILENT:
        value = getattr(node, name, None)
        if value and value != type(node).model_fields[name].default:
            found += _odd(value, name)
    if isinstance(node, IndexNode) and not isinstance(node.obj, BaseNode):
        found += texts_of(node.obj, Stage.document, names=True)
    for name in type(node).model_fields:
        value = getattr(node, name, None)
        if isinstance(value, MediaResource):
            found += texts_of(value.text, Stage.document)
            found += _odd([value.mimetype, str(value.url or ""), str(value.path or "")])
        elif name not in _READ_APART and value is not None:
            found += texts_of(value, Stage.document)
    return found


def _odd(value: Any, name: str = "") -> list[Found]:
    """Of what stands where no text belongs: what reads as one."""
    found = [f for f in texts_of(value, Stage.document) if f.text and not is_name(f.text.strip(), 6)]
    return [f for f in found if not (name == "image" and _DATA.fullmatch(f.text or ""))]


def named(node_id: str) -> str:
    """A node in messages and logs."""
    return f"node {node_id}" if is_name(node_id, 6) else "a node whose id is a text"


def _line(found: Found) -> str:
    """A text with the key that it stands under, as prompts show metadata."""
    key = found.path[0] if found.path else None
    return f"{key}: {found.text}" if isinstance(key, str) else str(found.text)


def _is_own_mark(key: str, value: Any, categories: Sequence[Category]) -> bool:
    """categories: what the guard may have named; Qwen3Guard's are there too, since another guard may have screened."""
    words = _WORDS | {c.value for c in (*Category, *categories)}
    return key in _KEYS and isinstance(value, str) and set(value.split(",")) <= words


def _media(node: BaseNode) -> list[str]:
    if isinstance(node, ImageNode):
        return ["image"] if node.image or node.image_path or node.image_url else []
    if isinstance(node, Node):
        kinds = ("image", "audio", "video")
        return [kind for kind in kinds if getattr(node, f"{kind}_resource") is not None]
    return []
