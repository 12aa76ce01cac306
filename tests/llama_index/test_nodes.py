"""Nodes: the postprocessor behind retrievers, and the transform in ingestion pipelines."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.postprocessor import MetadataReplacementPostProcessor
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
    TransformComponent,
)
from llama_index.postprocessor.guardkit import REDACTED, GuardEvent, GuardNodePostprocessor, GuardTransform
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.event_handlers import BaseEventHandler

from guardkit import Guard, GuardkitError, GuardViolation, NotJudged
from guardkit.testing import FakeGuard
from tests.leaks import FLAGGED, check_no_trace, make_guard
from tests.llama_index.doubles import PlainLLM, SmallEmbedding, index_of

REDACT = {"rules": [{"severity": "unsafe", "action": "redact"}]}


def scored(*nodes: Any) -> list[NodeWithScore]:
    made = [TextNode(text=n, id_=f"n{i}") if isinstance(n, str) else n for i, n in enumerate(nodes)]
    return [NodeWithScore(node=n, score=None if i == 2 else 1 - i / 10) for i, n in enumerate(made)]


def post(nodes: list[NodeWithScore], is_async: bool = False, guard: Any = None, **settings: Any) -> list[NodeWithScore]:
    processor = GuardNodePostprocessor(guard=guard or make_guard(), **settings)
    if is_async:
        return asyncio.run(processor.apostprocess_nodes(nodes, query_str="what?"))
    return processor.postprocess_nodes(nodes, query_str="what?")


@pytest.mark.parametrize("is_async", [False, True])
def test_what_is_blocked_is_dropped_and_the_rest_keeps_score_and_order(is_async: bool):
    nodes = scored("one", f"a {FLAGGED} b", "three", "four")
    kept = post(nodes, is_async)
    assert kept == [nodes[0], nodes[2], nodes[3]]
    assert [n.score for n in kept] == [1.0, None, 0.7]
    assert kept[0] is nodes[0]  # what passes is not copied


@pytest.mark.parametrize("is_async", [False, True])
def test_what_is_controversial_is_flagged_in_a_copy(is_async: bool):
    nodes = scored("hmm so")
    (kept,) = post(nodes, is_async)
    assert kept.metadata == {
        "guardkit_action": "flag",
        "guardkit_severity": "controversial",
        "guardkit_categories": "violent",
    }
    assert kept.score == 1.0
    assert nodes[0].metadata == {}
    assert kept.node.get_content("llm") == "hmm so"
    assert kept.node.get_content("embed") == "hmm so"
    assert post([kept])[0].metadata == kept.metadata  # a second pass changes nothing


@pytest.mark.parametrize("is_async", [False, True])
def test_redaction_takes_out_the_sentence_and_writes_it_nowhere(is_async: bool):
    related = RelatedNodeInfo(node_id="doc", metadata={"title": FLAGGED})
    node = TextNode(
        text=f"Good start. Then {FLAGGED}. Good end.",
        metadata={"title": FLAGGED, "page": 3, "file": "a.txt"},
        relationships={NodeRelationship.SOURCE: related},
        embedding=[1.0],
    )
    (kept,) = post(scored(node), is_async, make_guard(policy=REDACT))
    assert kept.node.get_content() == f"Good start. {REDACTED} Good end."
    assert kept.metadata["title"] == REDACTED
    assert kept.metadata["page"] == 3
    assert kept.metadata["file"] == "a.txt"
    assert kept.metadata["guardkit_action"] == "redact"
    assert kept.embedding is None
    check_no_trace(kept, "the node")
    (same,) = post(scored(node), is_async, on_block="redact")  # a policy that blocks, a postprocessor that redacts
    check_no_trace(same, "the node")


def test_redaction_of_what_is_spread_over_sentences_takes_all():
    node = TextNode(text="Part one. Part two.", metadata={"a": "x"})
    (kept,) = post(scored(node), guard=FakeGuard({"one. part": "unsafe"}, policy=REDACT))
    assert kept.node.get_content() == REDACTED


def test_flagging_instead_of_dropping_is_a_choice():
    (kept,) = post(scored(FLAGGED), on_block="flag")
    assert kept.metadata["guardkit_severity"] == "unsafe"
    assert kept.text == FLAGGED


@pytest.mark.parametrize(
    "node",
    [
        TextNode(text="fine", metadata={"title": FLAGGED}),
        TextNode(text="fine", metadata={"window": FLAGGED}, excluded_llm_metadata_keys=["window"]),
        TextNode(text="fine", metadata={"deep": [{"a": FLAGGED}]}, excluded_llm_metadata_keys=["deep"]),
        TextNode(text="fine", metadata={"guardkit_action": FLAGGED}, excluded_llm_metadata_keys=["guardkit_action"]),
        TextNode(text="fine", text_template=FLAGGED + " {metadata_str} {content}", metadata={"a": "b"}),
        Document(text=FLAGGED),
        Document(text="fine", metadata={"title": FLAGGED}),
        ImageNode(text=f"a caption: {FLAGGED}", image_url="http://localhost/a.png"),
        Node(text_resource=MediaResource(text=FLAGGED), image_resource=MediaResource(url="http://localhost/a.png")),
        IndexNode(text="a table", index_id="t", obj=TextNode(text=f"| {FLAGGED} |")),
        IndexNode(text="a table", index_id="t", obj=f"| {FLAGGED} |"),
        IndexNode(text="a table", index_id="t", obj={"rows": [[FLAGGED]]}),
        TextNode(
            text="fine",
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="d", metadata={"title": FLAGGED})},
        ),
        TextNode(text="a summary", metadata={"table_df": f"{{'0': {{'a': '{FLAGGED}'}}}}", "table_summary": "s"}),
    ],
    ids=lambda n: n.class_name(),
)
@pytest.mark.parametrize("media", ["on_error", "keep"])
def test_every_kind_of_node_is_read_whole(node: Any, media: Any):
    assert post(scored(node), media=media) == []


def test_a_window_that_another_postprocessor_would_put_in_is_read():
    node = TextNode(text="fine", metadata={"window": FLAGGED}, excluded_llm_metadata_keys=["window"])
    kept = MetadataReplacementPostProcessor(target_metadata_key="window").postprocess_nodes(post(scored(node)))
    assert kept == []


@pytest.mark.parametrize(
    "node",
    [
        ImageNode(text="a caption", image_url="http://localhost/a.png"),
        Node(text_resource=MediaResource(text="fine"), audio_resource=MediaResource(url="http://localhost/a.mp3")),
        Document(text="fine", image_resource=MediaResource(url="http://localhost/a.png")),
    ],
    ids=lambda n: n.class_name(),
)
def test_what_cannot_be_judged_follows_on_error(node: Any):
    processor = GuardNodePostprocessor(guard=make_guard())
    screening = processor.screen(scored(node))
    assert screening.nodes == []
    assert not screening.dropped[0].decision.judged  # said, not silent
    assert len(post(scored(node), guard=make_guard(on_error="allow"))) == 1
    assert len(post(scored(node), media="keep")) == 1
    assert post(scored(node), on_block="redact") == []


def test_counts():
    nodes = scored("one", FLAGGED, "three", "four")
    assert [n.text for n in post(nodes, max_nodes=2)] == ["one", "three"]
    assert len(post(nodes, min_nodes=3)) == 3
    with pytest.raises(GuardViolation, match=r"3 of 4 nodes are left.*min_nodes=4.*n1"):
        post(nodes, min_nodes=4)
    assert len(post(scored("one"), min_nodes=2)) == 1  # nothing was dropped: nothing to complain of


class Collected(BaseEventHandler):
    events: list[Any] = []  # noqa: RUF012

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        if isinstance(event, GuardEvent):
            self.events.append(event)


def test_it_says_what_it_dropped():
    screening = GuardNodePostprocessor(guard=make_guard()).screen(scored("one", FLAGGED, "hmm"))
    assert [(d.node_id, d.outcome) for d in screening.decisions] == [
        ("n0", "kept"),
        ("n1", "dropped"),
        ("n2", "flagged"),
    ]
    assert screening.dropped[0].decision.verdict.severity.value == "unsafe"
    collected, dispatcher = Collected(), get_dispatcher()
    dispatcher.add_event_handler(collected)
    try:
        post(scored("one", FLAGGED))
    finally:
        dispatcher.event_handlers.remove(collected)
    (event,) = collected.events
    assert (event.where, event.outcome, event.severity) == ("node n1", "dropped", "unsafe")
    check_no_trace(event.model_dump(), "the event")


def test_batches_give_what_one_by_one_gives():
    texts = [FLAGGED if i % 7 == 0 else "hmm" if i % 5 == 0 else f"text {i}" for i in range(50)]
    guard = make_guard()
    whole = post(scored(*texts), guard=guard)
    calls = guard.model.calls
    assert calls == 1
    assert post(scored(*texts), batch_size=1) == whole
    assert post(scored(*texts), is_async=True, batch_size=7) == whole


def test_it_fits_behind_a_fusion_retriever():
    retrievers = [index_of("one", FLAGGED).as_retriever(similarity_top_k=5) for _ in range(2)]
    fusion = QueryFusionRetriever(
        retrievers, llm=PlainLLM("x"), num_queries=1, mode="reciprocal_rerank", similarity_top_k=5, use_async=False
    )
    nodes = fusion.retrieve("what?")
    assert len(nodes) == 2
    assert [n.text for n in post(nodes)] == ["one"]


def test_a_guard_that_fails_drops_and_one_text_does_not_touch_the_others():
    guard = FakeGuard({"crash": RuntimeError("boom")})
    assert [n.text for n in post(scored("one", "crash", "three"), guard=guard)] == ["one", "three"]
    open_guard = FakeGuard({"crash": RuntimeError("boom")}, on_error="allow")
    assert len(post(scored("one", "crash"), guard=open_guard)) == 2
    assert post(scored("one"), guard=FakeGuard(delay=0.5, timeout=0.05)) == []


# -- components


def test_components_can_be_written_down_and_read_again():
    for kind in (GuardNodePostprocessor, GuardTransform):
        made = kind(guard="nano", on_block="redact")
        data = made.to_dict()
        assert data["class_name"] == kind.__name__ == kind.class_name()
        assert kind.from_dict(data).to_dict() == data
        assert kind.from_json(made.to_json()).on_block == "redact"
        strict = kind(guard=Guard.load(policy="strict", timeout=3))
        again = kind.from_dict(strict.to_dict())
        assert again.guard.policy == strict.guard.policy
        assert again.guard.timeout == 3
        fake = make_guard()
        assert kind.from_dict(kind(guard=fake).to_dict(), guard=fake).guard is fake
    assert isinstance(GuardNodePostprocessor(guard="nano"), BaseNodePostprocessor)
    assert isinstance(GuardTransform(guard="nano"), TransformComponent)


def test_a_guard_is_made_once_and_mistakes_are_named():
    assert GuardTransform(guard="nano").guard is GuardNodePostprocessor(guard="nano").guard
    assert GuardTransform(guard=own_guard).guard is GuardTransform(guard=own_guard).guard
    with pytest.raises(GuardkitError, match="unknown model 'nanoo'"):
        GuardTransform(guard="nanoo")
    with pytest.raises(GuardkitError, match="not int"):
        GuardTransform(guard=3)
    with pytest.raises(GuardkitError, match="pass it again"):
        GuardTransform.from_dict(GuardTransform(guard=own_guard).to_dict())
    with pytest.raises(TypeError, match="guard"):
        GuardTransform()


def own_guard() -> Guard:
    return make_guard()


def test_deep_copies_share_the_guard():
    for made in (GuardTransform(guard=make_guard()), GuardNodePostprocessor(guard=make_guard())):
        assert copy.deepcopy(made).guard is made.guard


def test_pickling():
    for guard in ("nano", own_guard, {"name": "nano", "policy": "strict"}, Guard.load(policy="loose")):
        made = GuardTransform(guard=guard, batch_size=3)
        again = pickle.loads(pickle.dumps(made))
        assert again.batch_size == 3
        assert again.to_dict() == made.to_dict()
    with pytest.raises(GuardkitError, match="cannot be sent to another process"):
        pickle.dumps(GuardTransform(guard=make_guard()))


# -- ingestion


def test_a_corpus_is_screened_before_it_is_indexed():
    documents = [Document(text=t, id_=f"d{i}") for i, t in enumerate(["fine", FLAGGED, "hmm"])]
    pipeline = IngestionPipeline(transformations=[GuardTransform(guard=make_guard()), SmallEmbedding()])
    nodes = pipeline.run(documents=documents)
    assert [n.node_id for n in nodes] == ["d0", "d2"]
    assert nodes[1].metadata["guardkit_action"] == "flag"
    again = asyncio.run(pipeline.arun(documents=documents))
    assert [n.node_id for n in again] == ["d0", "d2"]
    index = VectorStoreIndex(nodes, embed_model=SmallEmbedding())
    check_no_trace(index.docstore.docs, "the index")


def test_the_cache_remembers_until_the_policy_changes():
    documents = [Document(text="hmm", id_="d0")]
    cache = IngestionCache()

    def run(guard: FakeGuard) -> int:
        before = guard.model.calls
        IngestionPipeline(transformations=[GuardTransform(guard=guard)], cache=cache).run(documents=list(documents))
        return guard.model.calls - before

    guard = make_guard()
    assert run(guard) == 1
    assert run(guard) == 0
    assert run(make_guard(policy="strict")) == 1


def test_what_was_not_judged_stops_the_run_so_that_no_cache_remembers_it():
    documents = [Document(text="crash", id_="d0"), Document(text="fine", id_="d1")]
    guard = FakeGuard({"crash": RuntimeError("boom")})
    with pytest.raises(NotJudged, match="node d0"):
        GuardTransform(guard=guard)(documents)
    assert [n.node_id for n in GuardTransform(guard=guard, on_not_judged="drop")(documents)] == ["d1"]
    image = ImageNode(text="a caption", image_url="http://localhost/a.png")
    assert GuardTransform(guard=guard)([image]) == []  # nothing that a second run would change


PARALLEL = """
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import Document
from llama_index.postprocessor.guardkit import GuardTransform

if __name__ == "__main__":
    documents = [Document(text=f"How do I kill process {i}?", id_=f"d{i}") for i in range(6)]
    documents.append(Document(text="I will come to your house tonight and kill you.", id_="bad"))
    pipeline = IngestionPipeline(transformations=[GuardTransform(guard="nano")])
    print(sorted(n.node_id for n in pipeline.run(documents=documents, num_workers=2)))
"""


def test_parallel_workers(tmp_path: Path):
    program = tmp_path / "parallel.py"
    program.write_text(PARALLEL)
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "integrations")])
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "bad" not in done.stdout
    assert "d0" in done.stdout
