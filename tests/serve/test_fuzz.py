"""Events that are mutated at random, in every protocol: whatever they have become, no flagged text passes and every
stream comes to an end that its clients understand."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest

from tests.leaks import BAD, FLAGGED, SAFE, cut
from tests.serve import scripted
from tests.serve.scripted import PROTOCOLS, STAGES, Reply, Script
from tests.serve.test_streams import stream

STRANGE: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    "",
    "x",
    [],
    {},
    [[]],
    {"a": {"b": 1}},
    [1, "two"],
    "\ud800",
    10**30,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    out = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            out += places(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            out += places(inner, (*path, i))
    return out


def mutated(chance: random.Random, data: Any) -> Any:
    """Another value, key, nesting or double somewhere in it."""
    data = copy.deepcopy(data)
    path = chance.choice(places(data))
    inside = data
    for step in path[:-1]:
        inside = inside[step]
    how, last = chance.randrange(5), path[-1]
    if how == 0:
        inside[last] = chance.choice(STRANGE)
    elif how == 1 and isinstance(inside, dict):
        inside[chance.choice(("text", "content", "extra", "delta", "type", "index"))] = inside.pop(last)
    elif how == 2:
        inside[last] = chance.choice(([inside[last]], {"text": inside[last]}, {"x": {"y": inside[last]}}))
    elif how == 3 and isinstance(inside, dict):
        del inside[last]
    elif isinstance(inside, dict):
        inside["again"] = inside[last]
    return data


def check_end(protocol: str, reply: Reply) -> None:
    if reply.headers["content-type"].startswith("application/json"):
        assert reply.status >= 400
        assert reply.json["error"]
        return
    last = reply.datas[-1]
    if protocol in ("chat", "completions"):
        assert reply.body.rstrip().endswith(b"[DONE]")
    elif protocol == "messages":
        assert last["type"] in ("message_stop", "error")
    else:
        assert last["type"] in ("response.completed", "response.incomplete", "response.failed", "error")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", range(25))
def test_mutated_streams(protocol: str, seed: int) -> None:
    chance = random.Random(f"{protocol} {seed}")
    stage = chance.choice(STAGES[protocol])
    text = chance.choice((BAD, SAFE))
    raws = scripted.events(protocol, [text] if chance.random() < 0.5 else cut(text, 40), stage)
    events = []
    for raw in raws:
        head, _, data = raw.decode().partition("data: ")
        if chance.random() < 0.3 and not data.startswith("["):
            data = json.dumps(mutated(chance, json.loads(data)), ensure_ascii=chance.random() < 0.5) + "\n\n"
        events.append(f"{head}data: {data}".encode("utf-8", "surrogatepass"))
    if chance.random() < 0.3:
        events.insert(chance.randrange(len(events)), events[chance.randrange(len(events))])
    reply = stream(protocol, Script(events), on_violation=chance.choice(("end", "error", "replace")))
    shown = reply.body.decode("utf-8", "replace") + "".join(json.dumps(d, ensure_ascii=False) for d in reply.datas)
    assert FLAGGED not in shown
    check_end(protocol, reply)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", range(10))
def test_mutated_whole_answers(protocol: str, seed: int) -> None:
    from tests.leaks import make_guard
    from tests.serve.scripted import ASKS, PATHS, ask, make_app, run

    chance = random.Random(f"{protocol} {seed} whole")
    answer = scripted.whole(protocol, BAD, chance.choice(STAGES[protocol]))
    for _ in range(chance.randint(1, 3)):
        answer = mutated(chance, answer)
    script = Script.json(json.loads(json.dumps(answer, ensure_ascii=True)))
    reply = run(ask(make_app(make_guard(), script), PATHS[protocol], ASKS[protocol]))
    assert FLAGGED not in json.dumps(reply.json, ensure_ascii=False)
    assert reply.status in (200, 400, 502)
