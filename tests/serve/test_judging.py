"""The judging endpoints: ``/v1/check``, ``/v1/moderations``, and what stands round every request."""

from __future__ import annotations

import hashlib
import socket
from typing import Any

import pytest
from starlette.testclient import TestClient

from guardkit import Category, Guard, Overloaded, Policy
from guardkit.testing import FakeGuard
from guardkit_serve import Key, Settings, create_app
from guardkit_serve.moderations import CATEGORIES, MAPPING

SCRIPT = {"bad": "unsafe", "hmm": "controversial", "crash": RuntimeError("broken"), "busy": Overloaded("full")}
QUIET: dict[str, Any] = {"access_log": False}


def client(guard: Guard | None = None, **settings: Any) -> TestClient:
    app = create_app(guard or FakeGuard(SCRIPT), Settings(**{**QUIET, **settings}))
    return TestClient(app, base_url="http://127.0.0.1")


def test_check_gives_decisions_in_order() -> None:
    http = client()
    one = http.post("/v1/check", json={"text": "bad"})
    assert one.headers["x-guardkit-action"] == "block"
    assert one.json()["verdict"]["severity"] == "unsafe"
    assert set(one.json()) == {"action", "judged", "rule", "verdict"}
    many = http.post(
        "/v1/check", json={"items": ["fine", {"text": "hmm"}, {"messages": [{"role": "user", "content": "bad"}]}]}
    )
    assert [found["action"] for found in many.json()] == ["allow", "flag", "block"]
    assert many.headers["x-guardkit-action"] == "block"
    assert http.post("/v1/check", json={"items": []}).json() == []


def test_check_says_what_was_not_judged() -> None:
    found = client().post("/v1/check", json={"text": "crash"}).json()
    assert (found["action"], found["judged"], found["verdict"]) == ("block", False, None)
    assert "broken" in found["error"]
    allowing = client(FakeGuard(SCRIPT, on_error="allow")).post("/v1/check", json={"text": "crash"}).json()
    assert (allowing["action"], allowing["judged"]) == ("allow", False)


@pytest.mark.parametrize("stage", ["prompt", "response", "reasoning", "tool_call", "tool_output", "document"])
def test_check_at_every_stage(stage: str) -> None:
    http = client()
    assert http.post("/v1/check", json={"text": "bad", "stage": stage}).json()["verdict"]["stage"] == stage
    message = {"messages": [{"role": "user", "content": "bad"}], "stage": stage}
    assert http.post("/v1/check", json=message).json()["verdict"]["stage"] == stage


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[]", b'{"text": "a", "text": "b"}', b'{"text": 1}', b'{"txt": "a"}', b'{"text": "a", "stage": "x"}',
        b'{"text": "a", "policy": "no"}', b'{"text": "a", "model": "no"}', b'{"messages": [{"role": "x"}]}', b"\xff",
        b'{"text": "a", "items": []}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_an_error_of_the_client(body: bytes) -> None:
    answer = client().post("/v1/check", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.headers["x-guardkit-action"] == "none"


def test_moderations_as_openai_shapes_them() -> None:
    http = client()
    answer = http.post("/v1/moderations", json={"input": ["fine", "bad"], "model": "omni-moderation-latest"}).json()
    fine, bad = answer["results"]
    assert (fine["flagged"], bad["flagged"]) == (False, True)
    assert tuple(bad["categories"]) == CATEGORIES == tuple(bad["category_scores"])
    assert [name for name, found in bad["categories"].items() if found] == ["violence"]
    assert bad["category_scores"]["violence"] > 0.9
    assert bad["guardkit"]["severity"] == "unsafe"
    assert bad["guardkit"]["action"] == "block"
    assert http.post("/v1/moderations", json={"input": "hmm"}).json()["results"][0]["flagged"] is True


def test_every_category_has_a_row() -> None:
    assert set(MAPPING) == set(Category)
    assert {name for names in MAPPING.values() for name in names} <= set(CATEGORIES)


def test_an_image_follows_on_error() -> None:
    parts = [{"type": "text", "text": "fine"}, {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
    (blocked,) = client().post("/v1/moderations", json={"input": parts}).json()["results"]
    assert blocked["flagged"]
    assert blocked["guardkit"]["judged"] is False
    (allowed,) = (
        client(FakeGuard(SCRIPT, on_error="allow")).post("/v1/moderations", json={"input": parts}).json()["results"]
    )
    assert not allowed["flagged"]
    assert allowed["guardkit"]["judged"] is False


def test_overload_is_refused_with_a_time() -> None:
    answer = client().post("/v1/moderations", json={"input": "busy"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert client(max_requests=0).post("/v1/check", json={"text": "a"}).status_code == 503


def test_a_guard_that_is_too_slow_did_not_judge() -> None:
    slow = FakeGuard(SCRIPT, delay=0.5)
    found = client(slow, judge_s=0.05).post("/v1/check", json={"text": "fine"}).json()
    assert (found["action"], found["judged"]) == ("block", False)


def test_a_request_has_a_size() -> None:
    http = client(max_request_bytes=1000)
    assert http.post("/v1/check", json={"text": "a" * 2000}).status_code == 413
    assert http.post("/v1/check", content=(b"a" * 100 for _ in range(20))).status_code == 413


def key(name: str, **more: Any) -> Key:
    return Key(name, hashlib.sha256(f"sk-{name}".encode()).hexdigest(), **more)


def test_keys_policies_and_limits() -> None:
    keys = (key("one"), key("two", policy="strict", policies=("loose",)), key("three", per_minute=2))
    app = create_app(
        FakeGuard(SCRIPT), Settings(keys=keys, access_log=False), policies={n: Policy(n) for n in ("strict", "loose")}
    )
    http = TestClient(app, base_url="http://127.0.0.1")

    def ask(name: str, **body: Any) -> Any:
        return http.post("/v1/check", json={"text": "hmm", **body}, headers={"authorization": f"Bearer sk-{name}"})

    assert ask("none").status_code == 401
    assert http.post("/v1/check", json={"text": "hmm"}).status_code == 401
    assert http.get("/metrics").status_code == 401
    assert http.get("/health").status_code == 200
    assert http.post("/v1/check", json={"text": "a"}, headers={"x-api-key": "sk-one"}).status_code == 200
    assert ask("one").json()["action"] == "flag"
    assert ask("one", policy="loose").status_code == 400  # not its own
    assert ask("two").json()["action"] == "block"
    assert ask("two", policy="loose").json()["action"] == "allow"
    assert [ask("three").status_code for _ in range(3)] == [200, 200, 429]
    assert int(ask("three").headers["retry-after"]) > 0


def test_other_names_for_this_machine_are_refused() -> None:
    http = client()
    for headers in (
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example:8642"},
        {"origin": "http://evil.example"},
    ):
        assert http.get("/health", headers=headers).status_code == 403
    for host in ("localhost:8642", "127.0.0.1", "[::1]:8642"):
        assert http.get("/health", headers={"host": host}).status_code == 200
    assert client(hosts=("guard.local",)).get("/health", headers={"host": "guard.local"}).status_code == 200


OPEN = "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "answers"),
    [
        ("10.0.0.7:8642", True),
        ("[2001:db8::1]:8642", True),
        ("guard:8642", True),  # as another service of a compose file has it
        ("guard.safety.svc.cluster.local", True),
        ("GUARD.internal.", False),
        ("guard.internal", True),
        (socket.gethostname(), True),
        ("evil.example", False),
        ("10.0.0.7.evil.example", False),
        ("internal.evil.example", False),
        ("", False),
        ("guard.example", False),
    ],
)
def test_a_server_that_is_open_to_others_answers_to_names_that_no_web_page_can_have(host: str, answers: bool) -> None:
    """Without keys; else a page elsewhere whose name was made to point here could use it."""
    for path in ("/health", "/metrics", "/v1/models"):
        reply = client(host=OPEN).get(path, headers={"host": host})
        assert (reply.status_code != 403) is answers, reply.text
    check = client(host=OPEN).post("/v1/check", json={"text": "a"}, headers={"host": host})
    assert check.status_code == (200 if answers else 403)
    if not answers:
        assert "--allow-host" in check.json()["error"]["message"]
    for names in (("*",), ("guard.example", "evil.example", "*.evil.example", "GUARD.internal.", "")):
        told = client(host=OPEN, hosts=names).post("/v1/check", json={"text": "a"}, headers={"host": host})
        assert told.status_code == 200
    keyed = client(host=OPEN, keys=(key("one"),))
    headers = {"host": host or "evil.example", "x-api-key": "sk-one"}
    assert keyed.post("/v1/check", json={"text": "a"}, headers=headers).status_code == 200


def test_a_server_that_is_open_to_others_is_not_for_pages_elsewhere() -> None:
    def asked(origin: str, **settings: Any) -> int:
        headers = {"host": "10.0.0.7:8642", "origin": origin}
        reply = client(host=OPEN, **settings).post("/v1/check", json={"text": "a"}, headers=headers)
        return reply.status_code

    for origin in ("http://evil.example", "http://10.0.0.8:8642", "http://10.0.0.7:9000", "null", "http://guard"):
        assert asked(origin) == 403, origin
    for origin in ("http://10.0.0.7:8642", "https://10.0.0.7:8642", "http://localhost:3000"):
        assert asked(origin) == 200, origin
    assert asked("https://chat.example", hosts=("chat.example",)) == 200


def test_ready_is_said_after_the_warm_up() -> None:
    http = client()
    assert http.get("/ready").status_code == 503
    with http:
        assert http.get("/ready").json() == {"status": "ready"}
    assert http.get("/nothing").json()["error"]["message"].startswith("no such path here")
    assert http.get("/v1/check").status_code == 405


LITELLM = "/beta/litellm_basic_guardrail_api"


def test_litellm_asks_about_requests_and_answers() -> None:
    http = client()

    def ask(**body: Any) -> Any:
        return http.post(LITELLM, json={"request_data": {}, "input_type": "request", **body}).json()

    assert ask(texts=["fine"]) == {"action": "NONE"}
    blocked = ask(texts=["fine", "bad"])
    assert blocked["action"] == "BLOCKED"
    assert "unsafe (Violent)" in blocked["blocked_reason"]
    assert ask(texts=["fine"], images=["aGk="])["action"] == "BLOCKED"
    assert (
        ask(texts=["fine"], tools=[{"type": "function", "function": {"name": "f", "description": "bad"}}])["action"]
        == "BLOCKED"
    )
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "bad"}'}}
    assert ask(texts=[], tool_calls=[call], input_type="response")["action"] == "BLOCKED"
    messages = [{"role": "user", "content": "fine"}, {"role": "tool", "content": "bad", "tool_call_id": "1"}]
    assert ask(texts=["fine"], structured_messages=messages)["action"] == "BLOCKED"
    assert http.post(LITELLM, json={"texts": "fine"}).status_code == 400
    assert http.post(LITELLM, json={"texts": ["busy"]}).status_code == 503


def test_litellm_is_told_how_much_of_a_growing_answer_may_still_change() -> None:
    guard = FakeGuard(SCRIPT, holdback=3)
    text = "one two three four five si"
    answer = client(guard).post(LITELLM, json={"texts": [text, ""], "input_type": "response"}).json()
    with guard.stream() as stream:
        stream.feed(text)
        assert answer == {"action": "NONE", "stream_holdback_chars": [stream.withheld, 0]}
    assert text[: len(text) - stream.withheld] == "one two "


def test_litellm_gets_redacted_texts() -> None:
    policy = Policy("tidy", rules=[{"severity": "controversial", "action": "redact"}])
    texts = ["Fine. A hmm here. Fine again.", "fine"]
    answer = client(FakeGuard(SCRIPT, policy=policy)).post(LITELLM, json={"texts": texts}).json()
    assert answer["action"] == "GUARDRAIL_INTERVENED"
    assert "hmm" not in answer["texts"][0]
    assert answer["texts"][0].startswith("Fine.")
    assert answer["texts"][1] == "fine"
