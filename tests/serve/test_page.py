"""The page at ``/``: self-contained, closed to whoever should not see it, and honest about what was judged."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from guardkit import Guard, Policy
from guardkit.testing import FakeGuard
from guardkit_serve import Key, Settings, create_app
from guardkit_serve.page import HEADERS, _files
from tests.asking import eventually

SCRIPT = {"bad": "unsafe", "hmm": "controversial", "crash": RuntimeError("broken")}
FILES = ("page.js", "try.js", "live.js", "trace.js", "page.css", "icon.svg")
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> \u202e bad"


def client(guard: Guard | None = None, **given: Any) -> TestClient:
    app = create_app(
        guard or FakeGuard(SCRIPT), Settings(access_log=False, **given), policies={"strict": Policy("strict")}
    )
    return TestClient(app, base_url="http://127.0.0.1")


def events(http: TestClient, **body: Any) -> list[dict[str, Any]]:
    answer = http.post("/page/stream", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n") if part]


# -- files


def test_the_page_and_its_files_come_from_the_package() -> None:
    http = client()
    page = http.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    asked = re.findall(r'(?:src|href)="(/[^"]*)"', page.text)
    assert set(asked) == {"/assets/page.css", "/assets/page.js", "/assets/icon.svg"}
    for name in FILES:
        found = http.get(f"/assets/{name}")
        assert found.status_code == 200
        assert found.headers["x-content-type-options"] == "nosniff"
        assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", found.content), name
    assert "--r4" in http.get("/assets/page.css").text  # the look that all pages share


def test_the_policy_allows_nothing_inline_and_no_text_as_html() -> None:
    http = client()
    for path in ("/", *(f"/assets/{name}" for name in FILES)):
        policy = http.get(path).headers["content-security-policy"]
        assert policy == HEADERS["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
    page = http.get("/").text
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]* src=)", page)
    for name in (f for f in FILES if f.endswith(".js")):
        code = http.get(f"/assets/{name}").text
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc", code
        )


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../settings.py", "/assets/..%2fsettings.py", "/assets/%2e%2e/__init__.py", "/assets/__init__.py",
        "/assets/streaming.py", "/assets//etc/passwd", "/assets/%2fetc%2fpasswd", "/assets/..\\settings.py",
        "/assets/page.js%00.css", "/assets/", "/assets/PAGE.JS", "/page/../assets/__init__.py",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_files(path: str) -> None:
    answer = client().get(path)
    assert answer.status_code == 404
    assert "import" not in answer.text
    assert "root:" not in answer.text


@pytest.mark.parametrize("path", ["/", "/assets/page.js", "/page/state", "/page/recent"])
def test_another_name_for_this_machine_is_turned_away(path: str) -> None:
    """A page elsewhere whose name was made to point here (DNS rebinding) gets nothing."""
    http = client()
    for headers in (
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example:8642"},
        {"origin": "http://evil.example"},
    ):
        assert http.get(path, headers=headers).status_code == 403
    assert http.post("/page/stream", json={"prompt": "x"}, headers={"host": "evil.example"}).status_code == 403
    assert http.get(path, headers={"host": "localhost:8642"}).status_code == 200


@pytest.mark.parametrize("path", ["/page/state", "/page/recent"])
def test_a_page_that_is_open_to_others_answers_by_address(path: str) -> None:
    http = client(host="0.0.0.0", hosts=("guard.internal",))
    for name in ("10.0.0.7:8642", "[2001:db8::1]:8642", "guard.internal"):
        assert http.get(path, headers={"host": name}).status_code == 200
    refused = http.get(path, headers={"host": "evil.example:8642"})
    assert refused.status_code == 403
    assert "--allow-host" in refused.json()["error"]["message"]
    told = {"host": "10.0.0.7:8642", "origin": "http://evil.example"}
    assert http.post("/page/stream", json={"prompt": "x"}, headers=told).status_code == 403
    assert http.post("/page/stream", json={"prompt": "x"}, headers={"host": "evil.example"}).status_code == 403
    assert http.post("/v1/check", json={"text": "x"}, headers={"host": "evil.example"}).status_code == 403
    digest = hashlib.sha256(b"secret").hexdigest()
    keyed = client(host="0.0.0.0", keys=(Key("team", digest),))
    assert keyed.get(path, headers={"host": "any.example", "x-api-key": "secret"}).status_code == 200


def test_with_keys_only_the_files_are_open() -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    http = client(
        keys=(
            Key("team", digest, policy="balanced"),
            Key("both", hashlib.sha256(b"other").hexdigest(), policies=("strict",)),
        )
    )
    assert [http.get(path).status_code for path in ("/", "/assets/page.js")] == [200, 200]
    assert [http.get(path).status_code for path in ("/page/state", "/page/recent")] == [401, 401]
    assert http.post("/page/stream", json={"prompt": "bad"}).status_code == 401
    state = http.get("/page/state", headers={"authorization": "Bearer secret"}).json()
    assert list(state["policies"]) == ["balanced"]
    assert (
        http.post("/page/stream", json={"prompt": "x", "policy": "strict"}, headers={"x-api-key": "secret"}).status_code
        == 400
    )
    assert set(http.get("/page/state", headers={"x-api-key": "other"}).json()["policies"]) == {"balanced", "strict"}


# -- what it asks for


def test_a_prompt_and_an_answer_with_their_rules() -> None:
    found = events(client(), prompt="this is bad", answer="one two three")
    assert [e["kind"] for e in found] == ["prompt", "step", "step", "end", "done"]
    prompt, end = found[0]["decision"], found[-2]["decision"]
    assert (prompt["action"], prompt["severity"], prompt["categories"]) == ("block", "unsafe", ["Violent"])
    assert prompt["rule"].startswith("balanced: rule 1")
    assert prompt["scores"]["unsafe"] > 0.8
    assert "".join(text for text, _ in found[0]["pieces"]) == "this is bad"
    assert (end["action"], found[-2]["released"], found[-2]["withheld"]) == ("allow", 13, 0)


def test_an_answer_that_is_stopped_shows_what_was_withheld() -> None:
    answer = "one two three four five bad six seven"
    found = events(client(), answer=answer, holdback=2, pace_ms=1)
    stop = found[-2]
    assert stop["kind"] == "stop"
    assert stop["decision"]["action"] == "block"
    assert 0 < stop["released"] < answer.index("bad")
    assert stop["released"] + stop["withheld"] == len(answer)
    assert stop["rest"] == "six seven"
    tokens = [t for e in found if e["kind"] == "step" for t in e["tokens"]]
    assert [severity for text, _, severity in tokens if text.strip() == "bad"] == ["unsafe"]
    assert all(e["released"] <= answer.index("bad") for e in found if e["kind"] == "step")


def test_the_policy_and_the_stage_are_the_ones_that_were_chosen() -> None:
    http = client()
    by_policy = {p: events(http, prompt="hmm", policy=p)[0]["decision"]["action"] for p in ("balanced", "strict")}
    assert by_policy == {"balanced": "flag", "strict": "block"}
    assert events(http, prompt="x", prompt_stage="document")[0]["decision"]["stage"] == "document"
    assert events(http, answer="x y", answer_stage="tool_call")[-2]["decision"]["stage"] == "tool_call"


def test_what_cannot_be_judged_is_never_passed() -> None:
    found = events(client(), prompt="crash", answer="one two crash three")
    assert found[0]["decision"]["judged"] is False
    stop = found[-2]
    assert (stop["kind"], stop["decision"]["judged"], stop["decision"]["action"]) == ("stop", False, "block")
    closed = FakeGuard(SCRIPT)
    closed.close()
    assert [e["decision"]["judged"] for e in events(client(closed), answer="fine") if "decision" in e] == [False]


@pytest.mark.parametrize(
    "body",
    [
        [], {"text": "x"}, {"prompt": 1}, {"prompt": " "}, {"prompt": "x", "prompt_stage": "response"},
        {"prompt": "x", "answer_stage": "prompt"}, {"prompt": "x", "holdback": -1}, {"prompt": "x", "holdback": True},
        {"prompt": "x", "pace_ms": 10_000}, {"prompt": "x", "model": "no"}, {"prompt": "x", "policy": "no"},
    ],
)  # fmt: skip
def test_what_the_page_would_not_ask_is_refused(body: Any) -> None:
    assert client().post("/page/stream", json=body).status_code == 400


def test_a_text_has_a_limit() -> None:
    assert client().post("/page/stream", json={"prompt": "x" * 200_001}).status_code == 413


_HTTP = client()


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab <think>/\n\t😀é\u200d\ud83d"), max_size=60).filter(str.strip))
def test_the_tokens_and_the_rest_are_the_answer(answer: str) -> None:
    body = json.dumps({"answer": answer}).encode()
    parts = _HTTP.post("/page/stream", content=body).text.split("\n\n")
    found = [json.loads(part.removeprefix("data: ")) for part in parts if part]
    end = found[-2]
    shown = "".join(text for e in found if e["kind"] == "step" for text, _, _ in e["tokens"]) + end["rest"]
    assert shown == answer.replace("\ud83d", "\ufffd")
    assert end["released"] + end["withheld"] == len(answer)


# -- the newest decisions


def test_texts_are_neither_kept_nor_shown_unless_allowed_and_asked_for() -> None:
    closed = client()
    closed.post("/v1/check", json={"text": "a secret, bad"})
    for query in ("", "?texts=1"):
        (seen,) = closed.get(f"/page/recent{query}").json()["recent"]
        assert "text" not in seen
    assert "secret" not in repr(vars(closed.app.state.serving.observer))  # type: ignore[attr-defined]
    allowed = client(page_texts=True)
    allowed.post("/v1/check", json={"text": "a secret, bad"})
    assert "text" not in allowed.get("/page/recent").json()["recent"][0]
    (seen,) = allowed.get("/page/recent?texts=1").json()["recent"]
    assert seen["text"] == "a secret, bad"
    assert (seen["action"], seen["categories"], seen["stage"]) == ("block", ["Violent"], "prompt")
    assert allowed.get("/page/state").json()["texts"] is True


def test_decisions_are_counted() -> None:
    http = client()
    http.post("/v1/check", json={"items": ["bad", "fine", "hmm", "crash"]})
    events(http, answer="so bad it is")
    found = http.get("/page/recent?after=2").json()
    assert [seen["number"] for seen in found["recent"]] == [3, 4, 5]
    assert found["recent"][1]["judged"] is False
    assert found["recent"][2]["surface"] == "stream"
    totals = found["totals"]
    assert totals["actions"] == {"block": 2, "allow": 1, "flag": 1, "not judged": 1}
    assert totals["categories"] == {"Violent": 3}
    assert (totals["decisions"], totals["streams_open"], totals["requests_open"]) == (5, 0, 1)
    assert set(totals["ms"]) == {"p50", "p95", "p99"}
    for query in ("?after=x", "?after=-1", "?after=" + "9" * 99):
        assert http.get(f"/page/recent{query}").status_code == 400


def test_prometheus_has_the_guards_numbers_and_the_servers() -> None:
    http = client()
    http.post("/v1/check", json={"items": ["bad", "crash"]})
    observer = http.app.state.serving.observer  # type: ignore[attr-defined]
    observer.forwarded(True, 0.0004)
    observer.forwarded(False, 0.00008)
    http.get("/no/such/path")
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert (
        'guardkit_verdicts_total{action="block",category="violent",model="fake",severity="unsafe",stage="prompt"} 1.0'
        in lines
    )
    assert 'guardkit_not_judged_total{action="block",error="RuntimeError",model="fake",stage="prompt"} 1.0' in lines
    assert 'guardkit_serve_requests_total{action="block",route="/v1/check",status="200"} 1.0' in lines
    assert 'guardkit_serve_requests_total{action="none",route="",status="404"} 1.0' in lines
    assert "guardkit_serve_requests_open 1.0" in lines
    assert 'guardkit_serve_added_first_seconds_bucket{le="0.0005"} 1.0' in lines
    assert 'guardkit_serve_added_next_seconds_bucket{le="0.0001"} 1.0' in lines
    assert 'guardkit_queue_depth{loop="fake"} 0.0' in lines


# -- in a browser


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    app = create_app(
        FakeGuard(SCRIPT, holdback=2),
        Settings(access_log=False, page_texts=True),
        policies={"strict": Policy("strict")},
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        end = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(60)


def test_a_stream_that_nobody_reads_on_is_closed(address: str) -> None:
    def state() -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{address}page/recent").json()["totals"]
        return found

    before = state()["decisions"]
    body = {"answer": "one two three " * 500, "pace_ms": 50}
    with httpx.stream("POST", f"{address}page/stream", json=body, timeout=60) as answer:
        pieces = answer.iter_bytes()
        next(pieces)
        assert state()["streams_open"] == 1
    assert eventually(lambda: state()["streams_open"] == 0)
    assert state()["decisions"] == before + 1


def test_what_is_asked_for_at_once_has_a_limit() -> None:
    full = client(max_requests=0)
    assert full.post("/page/stream", json={"prompt": "x"}).status_code == 503


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_judging_in_a_browser(address: str, visit, width: int, scheme: str) -> None:
    with visit(address, width, scheme) as seen:
        page = seen.page
        seen.until("document.body.dataset.ready === 'yes'")
        page.fill("#prompt", HOSTILE)
        page.fill("#answer", "one two three four bad " + HOSTILE)
        page.select_option("#policy", "strict")
        page.focus("#prompt")
        page.keyboard.press("Control+Enter")
        seen.until("document.querySelector('#answer-result .mark') !== null")
        assert page.title() == "guardkit"  # nothing of the text ran
        assert seen.barriers() == []
        assert page.locator("#try img, #try script").count() == 0
        shown = page.inner_text("#prompt-result .text")
        assert shown == HOSTILE.replace("\u202e", "U+202E")
        assert page.locator("#prompt-result .badge").all_inner_texts() == ["block", "unsafe"]
        assert "strict: rule 1" in page.inner_text("#answer-result")
        assert page.locator("#answer-result .text .r4.f-unsafe").first.inner_text().strip() == "bad"
        assert page.locator("#answer-result .rest").inner_text().startswith("<img")
        assert "answer stopped: block, unsafe" in page.text_content("#said")
        assert page.locator("#rules .hit").count() == 1
        assert seen.overflow == 0
        assert seen.complaints == []
        assert all(url.startswith(address) for url in seen.requests)
        assert {url.removeprefix(address) for url in seen.requests} >= {
            "",
            "assets/page.css",
            "page/state",
            "page/stream",
        }


def test_the_views_by_keyboard(address: str, visit, tmp_path: Path) -> None:
    line = {"index": 0, "outcome": "both", "action": "block", "parts": []}
    text = "😀 so bad " + HOSTILE
    tokens = [{"start": 0, "end": 5, "severity": "safe", "scores": {"safe": 0.9}, "flagged": False}]
    tokens += [{"start": 5, "end": len(text), "severity": "unsafe", "scores": {"safe": 0.1}, "flagged": True}]
    part = {"stage": "response", "severity": "unsafe", "categories": ["violent"], "n_tokens": 2, "risk": 0.9}
    line["parts"] = [part | {"text": text, "tokens": tokens}]  # type: ignore[assignment]
    file = tmp_path / "t.jsonl"
    file.write_text(json.dumps(line) + "\n")
    with visit(address, 390) as seen:
        page = seen.page
        seen.until("document.body.dataset.ready === 'yes'")
        page.fill("#answer", "one two three")
        page.click("#judge button.main")
        seen.until("document.querySelector('#answer-result .facts') !== null")
        page.focus("#tab-try")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == "tab-live"
        seen.until("document.querySelectorAll('#recent tr').length > 0")
        assert page.is_hidden("#try")
        page.check("#texts")
        assert seen.overflow == 0
        assert seen.barriers() == []
        page.focus("#tab-live")
        page.keyboard.press("ArrowRight")
        page.set_input_files("#file", str(file))
        seen.until("document.querySelector('#traces .r4') !== null")
        assert page.inner_text("#traces .text") == text.replace("\u202e", "U+202E")
        assert page.inner_text("#traces .r4.f-unsafe").startswith("bad")
        assert seen.barriers() == []
        file.write_text("no json")
        page.set_input_files("#file", str(file))
        seen.until("!document.getElementById('problem').hidden")
        assert "line 1 is no JSON" in page.inner_text("#problem")
        assert seen.overflow == 0
        assert seen.complaints == []
        unnamed = page.evaluate(
            "[...document.querySelectorAll('input,select,textarea')].filter(e => !e.labels.length).map(e => e.id)"
        )
        assert unnamed == []


def test_every_file_that_is_served_is_in_the_table() -> None:
    assert set(_files()) == {"index.html", *FILES}
