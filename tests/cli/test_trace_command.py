"""`guard trace`: chat logs in, places of risk out."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from guardkit.testing import FakeGuard, FakeTokenizer
from guardkit.trace import Begin, trace
from guardkit_cli.records import Record
from guardkit_cli.trace import TraceRow
from guardkit_cli.trace_html import Page
from guardkit_cli.trace_style import STYLE

THOUGHT = "All is fine. This is BAD indeed."


def jsonl(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_a_text_from_a_pipe(cli):
    result = cli("trace", stdin=f"<think>{THOUGHT}</think>\n\nHere you are.\n")
    assert result.code == 1
    assert result.out == (
        "block  reasoning only 0.95       1  reasoning: unsafe (Violent) from sentence 2 of 2, token 6 of 7, "
        '"BAD indeed."; answer: safe\n'
    )
    assert "1 trace: 0 flagged, 1 blocked, 0 not judged" in result.err


@pytest.mark.parametrize(
    ("text", "code", "outcome"),
    [
        ("<think>ok</think>ok", 0, "safe"),
        ("<think>BAD</think>BAD", 1, "both"),
        ("<think>ok</think>BAD", 1, "answer_only"),
        ("<think>HMM</think>ok", 0, "reasoning_only"),
        ("<think>BOOM</think>ok", 3, "not_judged"),
        ("", 0, "safe"),
    ],
)
def test_outcomes_and_exit_codes(cli, text, code, outcome):
    result = cli("trace", "--json", stdin=text)
    assert (result.code, [row["outcome"] for row in result.rows]) == (code, [outcome])


def test_policy_and_on_error(cli):
    assert cli("trace", "--policy", "strict", stdin="HMM").code == 1
    result = cli("trace", "--json", "--on-error", "allow", stdin="BOOM")
    assert (result.code, result.rows[0]["action"], result.rows[0]["severity"]) == (0, "allow", None)
    assert "not judged and let through" in result.err


def test_json_keys_and_offsets(cli):
    text = f"<think>{THOUGHT}</think>Here you are."
    (row,) = cli("trace", "--json", "--text", "--tokens", stdin=text).rows
    assert list(row) == [
        "index", "line", "message", "outcome", "severity", "reasoning", "answer", "tool_calls", "categories", "risk",
        "action", "model", "unit", "parts", "latency_ms",
    ]  # fmt: skip
    assert (row["severity"], row["reasoning"], row["answer"], row["tool_calls"]) == ("unsafe", "unsafe", "safe", None)
    thought, answer = row["parts"]
    assert thought["begin"] == {"token": 5, "sentence": 1, "char": 21}
    assert answer["begin"] is None
    for part in (thought, answer):
        assert text[part["start"] : part["start"] + part["length"]] == part["text"]
        assert "".join(part["text"][t["start"] : t["end"]] for t in part["tokens"]) == part["text"]
        assert "".join(part["text"][s["start"] : s["end"]] for s in part["sentences"]) == part["text"]
    assert [s["severity"] for s in thought["sentences"]] == ["safe", "unsafe"]
    plain = cli("trace", "--json", stdin=text).rows[0]["parts"][0]
    assert "text" not in plain
    assert "tokens" not in plain


def test_every_shape_of_a_record(cli, tmp_path):
    thought, answer = "so BAD it is", "Fine."
    shapes = [
        {"prompt": "hi", "response": f"<think>{thought}</think>{answer}"},
        {"reasoning_content": thought, "response": answer},
        {"role": "assistant", "reasoning": thought, "content": answer},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "ai", "thinking": thought, "content": answer}]},
        [{"role": "ai", "content": [{"type": "thinking", "thinking": thought}, {"type": "text", "text": answer}]}],
        {"choices": [{"message": {"content": answer, "reasoning_content": thought}}]},
        {"text": f"<think>{thought}</think>{answer}"},
        f"<think>{thought}</think>{answer}",
    ]  # fmt: skip
    path = tmp_path / "chats.jsonl"
    path.write_text("\n" + jsonl(*shapes), encoding="utf-8")
    result = cli("trace", "--json", str(path))
    assert [row["outcome"] for row in result.rows] == ["reasoning_only"] * len(shapes)
    assert {json.dumps([row["parts"][0]["begin"], row["parts"][0]["n_tokens"]]) for row in result.rows} == {
        '[{"token": 1, "sentence": 0, "char": 3}, 4]'
    }
    assert [row["line"] for row in result.rows] == list(range(2, 2 + len(shapes)))
    assert "1 blank line" in result.err


def test_every_assistant_message_of_a_chat_is_traced(cli):
    chat = [
        {"role": "assistant", "content": "BAD"},
        {"role": "user", "content": "BAD"},
        {"role": "assistant", "content": "fine"},
        {"role": "user", "content": "bye"},
    ]
    rows = cli("trace", "--jsonl", "--json", stdin=jsonl({"messages": chat})).rows
    assert [(row["message"], row["outcome"]) for row in rows] == [(0, "answer_only"), (2, "safe")]
    result = cli("trace", "--jsonl", "--json", "--last", stdin=jsonl({"messages": chat}))
    assert [row["message"] for row in result.rows] == [2]
    assert result.code == 0


def test_every_candidate_is_traced(cli):
    choices = [{"message": {"content": "fine"}}, {"message": {"content": "BAD"}}]
    rows = cli("trace", "--jsonl", "--json", stdin=jsonl({"choices": choices})).rows
    assert [row["outcome"] for row in rows] == ["safe", "answer_only"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{oops", "not valid JSON"),
        ("3", "expected a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"prompt": "hi"}', "no 'messages'"),
        ('{"messages": [{"role": "user", "content": "hi"}]}', "no message of an assistant"),
        ('{"messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": "x"}]}', "message 0"),
        ('{"messages": "x"}', "must be a list"),
        ('{"response": 3}', "must be a string"),
        ('{"prompt": 3, "response": "x"}', "'prompt' must be a string"),
        ('{"choices": [{}]}', "choice 0 has no 'message'"),
    ],
)
def test_what_cannot_be_read_is_not_judged(cli, line, reason):
    result = cli("trace", "--jsonl", "--json", stdin=line + "\n" + jsonl({"text": "fine"}))
    assert result.code == 3
    assert [row["outcome"] for row in result.rows] == ["not_judged", "safe"]
    assert reason in result.rows[0]["error"]
    assert "Traceback" not in result.err


CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "fine"}]


@pytest.mark.parametrize(
    "record", [{"text": ["fine", "BAD"]}, {"messages": [*CHAT, {"role": "Assistant", "content": "BAD"}]}]
)
def test_lists_of_texts_and_roles_in_any_case_are_traced(cli, record):
    result = cli("trace", "--jsonl", "--json", "--last", stdin=jsonl(record))
    assert [row["outcome"] for row in result.rows] == ["answer_only"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"type": "human", "content": "hi"}, "no message of an assistant"),
        ({"response": "fine", "content": "BAD"}, "only one of 'response', 'content'"),
        ({"messages": CHAT, "choices": [{"message": {"content": "BAD"}}]}, "only one of 'messages', 'choices'"),
        ({"messages": CHAT, "response": "BAD"}, "only one of 'messages', 'response'"),
        ({"messages": CHAT, "reasoning_content": "BAD"}, "'reasoning_content' beside 'messages'"),
        ({"choices": [{"text": "fine", "reasoning": "BAD"}]}, "'reasoning' beside 'choices[0]'"),
        ({"choices": [{"text": "BAD", "message": {"content": "fine"}}]}, "choice 0: only one of 'message', 'text'"),
        ({"response": "I will ", "done": False}, "a piece of a stream"),
        ({"content": "I will ", "stop": False}, "a piece of a stream"),
        ({"choices": [{"delta": {"content": "I will "}}]}, "choice 0 is a piece of a stream"),
        ({"choices": [{"text": "I will ", "finish_reason": None}]}, "choice 0 is a piece of a stream"),
        ({"messages": [*CHAT, {"role": "robot", "content": "BAD"}]}, "message 2: unknown role 'robot'"),
        ({"messages": [{"content": "BAD"}]}, "no 'messages'"),
        ({"messages": [*CHAT, {"type": "robot", "content": "BAD"}]}, "message 2: 'role' is missing"),
    ],
)
def test_a_record_with_more_than_is_read_is_not_judged(cli, record, reason):
    result = cli("trace", "--jsonl", "--json", "--last", stdin=jsonl({"text": "fine"}, record))
    assert result.code == 3
    assert [row["outcome"] for row in result.rows] == ["safe", "not_judged"]
    assert reason in result.rows[1]["error"]
    assert "line 2: " in result.err


@pytest.mark.parametrize(
    ("record", "outcome"),
    [
        ({"text": "BAD", "reasoning_content": "fine"}, "answer_only"),
        ({"object": "response", "output": [{"text": "BAD"}], "reasoning": {"summary": "detailed"}}, "answer_only"),
        ({"message": {"role": "assistant", "content": "BAD"}, "done": True}, "answer_only"),
        ({"role": "assistant", "content": "fine", "text": "BAD"}, "answer_only"),
        ({"response": None, "content": "BAD", "thinking": "fine"}, "answer_only"),
        ({"response": "fine", "reasoning_details": [{"type": "reasoning.text", "text": "BAD"}]}, "reasoning_only"),
        ({"response": "fine", "refusal": "BAD"}, "answer_only"),
        ({"type": "ai", "content": "fine", "tool_calls": [{"name": "run", "args": {"c": "BAD"}}]}, "answer_only"),
        ({"type": "ai", "content": "fine", "additional_kwargs": {"reasoning_content": "BAD"}}, "reasoning_only"),
        ({"type": "ai", "content": "fine", "invalid_tool_calls": [{"name": "run", "args": "{BAD"}]}, "answer_only"),
        ({"messages": [*CHAT, {"role": "ai", "content": "BAD"}], "reasoning": {"effort": "low"}}, "answer_only"),
        ({"messages": None, "role": None, "response": "BAD", "done": True, "stop": True}, "answer_only"),
    ],
)
def test_what_stands_beside_an_answer_is_traced(cli, record, outcome):
    rows = cli("trace", "--jsonl", "--json", "--last", stdin=jsonl(record)).rows
    assert [row["outcome"] for row in rows] == [outcome]


@pytest.mark.parametrize("log", [jsonl({"text": "fine"}), json.dumps(CHAT, indent=1), "\n" + jsonl(CHAT)])
def test_what_looks_like_json_lines_is_no_text(cli, tmp_path, log):
    result = cli("trace", stdin=log)
    assert (result.code, result.out) == (2, "")
    assert "give --jsonl, or --whole" in result.err
    assert cli("trace", "--whole", stdin=log).code == 0
    path = tmp_path / "chat.log"
    path.write_text(log, encoding="utf-8")
    result = cli("trace", "--json", str(path), "-", stdin="[BAD] {fine}")
    assert result.code == 3
    assert [(row["input"], row["outcome"]) for row in result.rows] == [("-", "answer_only")]
    assert "chat.log': this looks like JSON lines" in result.err


def test_json_files_and_tables_are_read_by_their_names(cli, tmp_path):
    chat = [{"role": "user", "content": "BAD"}, {"role": "assistant", "content": "BAD"}]
    (tmp_path / "chat.json").write_text(json.dumps(chat, indent=1), encoding="utf-8")
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": chat}, {"text": "fine"}]), encoding="utf-8")
    (tmp_path / "rows.csv").write_text('prompt,response\nhi,"fine, BAD"\n', encoding="utf-8")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(jsonl({"text": "BAD"}).encode()))
    for name, found in {"chat.json": [1], "rows.json": [1, None], "rows.csv": [None], "rows.jsonl.gz": [None]}.items():
        rows = cli("trace", "--json", str(tmp_path / name)).rows
        assert [row["message"] for row in rows] == found
        assert rows[0]["outcome"] == "answer_only"


@pytest.mark.parametrize("name", ["log.ndjson", "LOG.JSONL"])
def test_the_names_of_json_lines(cli, tmp_path, name):
    path = tmp_path / name
    path.write_text(jsonl({"text": "fine"}, {"text": "BAD"}), encoding="utf-8")
    assert [row["outcome"] for row in cli("trace", "--json", str(path)).rows] == ["safe", "answer_only"]


IMAGE = {"role": "assistant", "content": [{"type": "image_url", "image_url": {}}, {"type": "text", "text": "fine"}]}


@pytest.mark.parametrize("record", [IMAGE, {"response": "<think>BOOM</think>fine"}, {"text": "BOOM"}])
def test_a_row_that_was_not_judged_does_not_say_safe(cli, tmp_path, record):
    (row,) = cli("trace", "--jsonl", "--json", "--text", stdin=jsonl(record)).rows
    keys = ("outcome", "severity", "reasoning", "answer", "tool_calls", "risk")
    assert [row[key] for key in keys] == ["not_judged", *[None] * 5]
    assert row["text"] == jsonl(record).strip()
    assert "safe" not in cli("trace", "--jsonl", stdin=jsonl(record)).out
    page, found = page_of(cli, tmp_path, record)
    assert 'class="badge safe"' not in page
    assert found.texts[-1] == jsonl(record).strip()


def test_what_is_unsafe_is_told_where_something_else_was_not_judged(cli, tmp_path):
    record = {"response": "<think>BOOM</think>BAD"}
    (row,) = cli("trace", "--jsonl", "--json", stdin=jsonl(record)).rows
    assert (row["reasoning"], row["answer"], row["risk"]) == (None, "unsafe", None)
    assert "text" not in row
    assert "answer: unsafe (Violent)" in cli("trace", "--jsonl", stdin=jsonl(record)).out
    assert page_of(cli, tmp_path, record)[0].count('class="badge unsafe"') == 2


def test_files_are_whole_texts_and_jsonl_by_name(cli, tmp_path):
    text, log = tmp_path / "answer.txt", tmp_path / "log.jsonl"
    text.write_text("one\n\nBAD\n", encoding="utf-8")
    log.write_text(jsonl({"text": "fine"}, {"text": "HMM"}), encoding="utf-8")
    result = cli("trace", "--json", str(text), str(log), "-", stdin="x")
    assert [(row["input"], row["line"], row["outcome"]) for row in result.rows] == [
        (str(text), 1, "answer_only"),
        (str(log), 1, "safe"),
        (str(log), 2, "answer_only"),
        ("-", 1, "safe"),
    ]
    assert len(cli("trace", "--whole", "--json", str(log)).rows) == 1


def test_only_flagged_and_quiet(cli):
    data = jsonl({"text": "fine"}, {"text": "HMM"}, {"text": "BAD"})
    rows = cli("trace", "--jsonl", "--json", "--only-flagged", stdin=data).rows
    assert [row["index"] for row in rows] == [1, 2]
    result = cli("trace", "--jsonl", "--quiet", stdin=data)
    assert (result.code, result.out) == (1, "")


def test_wrong_usage(cli, tmp_path):
    for args in (["--whole", "--jsonl"], ["--text"], ["--tokens"], [str(tmp_path / "none.txt")], ["--policy", "nope"]):
        assert cli("trace", *args, stdin="x").code == 2
    log = tmp_path / "log.txt"
    log.write_text("keep me", encoding="utf-8")
    assert cli("trace", str(log), "--html", str(log)).code == 2
    assert log.read_text(encoding="utf-8") == "keep me"
    result = cli("trace", "--html", str(tmp_path / "no" / "page.html"), stdin="x")
    assert result.code == 3
    assert "page.html" in result.err


def test_terminal_escapes_stay_out_of_the_output(cli):
    result = cli("trace", stdin="\x1b[31mBAD\x07\u202e boom")
    assert "\x1b" not in result.out
    assert "\u202e" not in result.out


# ------------------------------------------------------------------------------------------------------- the page


class Reading(HTMLParser):
    """The texts of a page as a browser shows them, its tags, and whether all of them are closed."""

    VOID = ("meta", "br", "input")

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside: int | None = None
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "p" and dict(attrs).get("class") == "text":
            self._inside = len(self.open)
            self.texts.append("")

    def handle_endtag(self, tag):
        if self._inside == len(self.open):
            self._inside = None
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self._inside is not None:
            self.texts[-1] += data


def page_of(cli, tmp_path, *records: object, args: tuple[str, ...] = ()) -> tuple[str, Reading]:
    path = tmp_path / "page.html"
    cli("trace", "--jsonl", "--quiet", "--html", str(path), *args, stdin=jsonl(*records))
    page = path.read_text(encoding="utf-8")
    return page, Reading(page)


def test_the_page_holds_the_text_and_the_place(cli, tmp_path):
    page, found = page_of(cli, tmp_path, {"prompt": "why?", "response": f"<think>{THOUGHT}</think>\n\nA & B.\r\nC"})
    assert found.texts == ["why?", THOUGHT, "A & B.\nC"]
    assert "The reasoning is not safe; what came out of it is." in page
    assert "The risk begins in sentence 2, at token 6, character 22" in page
    assert 'data-n="risk begins: Violent"' in page
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for tag, attrs in found.tags if tag == "a"]
    assert {link[1:] for link in links} <= set(ids)
    assert all(link.startswith("#") for link in links)


def test_hostile_texts_are_only_text(cli, tmp_path):
    evil = "</p></section><script>alert(1)</script><img src=x onerror=alert(1)> \"'& <!-- &lt; BAD <style> ]]> "
    page, found = page_of(
        cli, tmp_path,
        {"prompt": evil, "reasoning_content": evil, "response": evil + "\x00\x1b\u202e\ud800 end"},
    )  # fmt: skip
    assert found.texts == [evil, evil, evil + "␀␛U+202E\ufffd end"]
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "img", "link", "iframe", "object"})
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on") or name == "src"]
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|url\(|@import", page)


def test_characters_that_cannot_be_seen_are_shown(cli, tmp_path):
    unseen = "\xad\u034f\u115f\u1160\u180b\u180e\u2028\u2029\u3164\ufe00\ufe0f\uffa0\ufff9\ufffb\U000e0100\U000e01ef"
    _, found = page_of(cli, tmp_path, {"text": "a" + "b".join(unseen)})
    assert found.texts == ["a" + "b".join(f"U+{ord(c):04X}" for c in unseen)]
    usual = "❤\ufe0f 1\ufe0f\u20e3 👩\u200d🚀 می\u200cخواهم"
    _, found = page_of(cli, tmp_path, {"text": usual + " ❤\ufe0f\ufe0f"})
    assert found.texts == [usual + " ❤\ufe0fU+FE0F"]


def test_text_without_tokens_is_on_the_page(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeTokenizer, "encode", lambda self, text: ([], []))
    _, found = page_of(cli, tmp_path, {"response": "<think>\u200b\u200b</think>\n\n"})
    assert found.texts == ["U+200BU+200B"]


@pytest.mark.parametrize("text", ["\n\n BAD", "\n \n"])
def test_a_risk_that_begins_in_blank_lines_has_a_place(tmp_path, text):
    found = trace(FakeGuard({"BAD": "unsafe"}), text + "BAD")
    part = replace(found.parts[0], text=text, spans=(replace(found.parts[0].spans[-1], start=0, end=len(text)),))
    path = tmp_path / "page.html"
    with Page(str(path)) as page:
        found = replace(found, parts=(replace(part, begin=Begin(0, 0, 0)),))
        page.add([TraceRow(0, Record(1, text, text), found.decision, output=None, trace=found)])
    tags = Reading(path.read_text(encoding="utf-8")).tags
    links = {attrs["href"][1:] for tag, attrs in tags if tag == "a"}
    assert "t0p0b" in links
    assert links <= {attrs["id"] for _, attrs in tags if "id" in attrs}


def test_hostile_file_names_and_errors_are_only_text(cli, tmp_path):
    path, page = tmp_path / "<b onclick=x>&.jsonl", tmp_path / "page.html"
    path.write_text('{"messages": [{"role": "<script>alert(1)</script>"}, {"role": "assistant"}]}\n', encoding="utf-8")
    cli("trace", "--quiet", "--html", str(page), str(path))
    found = Reading(page.read_text(encoding="utf-8"))
    assert {tag for tag, _ in found.tags}.isdisjoint({"script"})
    assert not [1 for _, attrs in found.tags if "onclick" in attrs]


def test_what_was_not_judged_is_on_the_page(cli, tmp_path):
    page, _ = page_of(cli, tmp_path, {"prompt": 3, "response": "x"}, {"text": "BOOM"})
    assert page.count("Not judged: ") == 2
    assert page.count("nothing here counts as safe") == 2


def test_neighbours_of_one_shade_share_an_element(cli, tmp_path):
    few, _ = page_of(cli, tmp_path, {"text": "fine " * 10 + "BAD " * 10})
    many, found = page_of(cli, tmp_path, {"text": "fine " * 10_000 + "BAD " * 10_000})
    assert many.count("<span") == few.count("<span")
    assert found.texts == ["fine " * 10_000 + "BAD " * 10_000]


def test_a_strip_has_a_bounded_number_of_cells(cli, tmp_path):
    page, found = page_of(cli, tmp_path, {"text": "All is well. " * 2000})
    assert 100 < sum("aria-label" in attrs for _, attrs in found.tags) <= 240
    assert page.count('class="s safe" data-n="2000"') == 1


def test_many_traces_have_a_list(cli, tmp_path):
    records = [{"text": "BAD" if i % 2 else "fine"} for i in range(120)]
    page, _ = page_of(cli, tmp_path, *records)
    assert page.count("<article") == 120
    assert page.count('<tr class="found">') == 60
    assert "120 on this page" in page
    page, _ = page_of(cli, tmp_path, *records, args=("--only-flagged",))
    assert page.count("<article") == 60


def luminance(colour: str) -> float:
    """Of "#rgb" or "#rrggbb", as WCAG defines it."""
    wide = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
    linear = [int(wide[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in linear)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_shades_differ_in_lightness_and_texts_can_be_read(mode):
    names = re.findall(r":root\{(.*?)\}", STYLE, re.S)[mode]
    colour = {name: luminance(value) for name, value in re.findall(r"--(\w+):(#\w+)", names)}
    shades = [colour[name] for name in ("card", "r1", "r2", "r3", "r4")]
    assert shades == sorted(shades, reverse=not mode)
    pairs = [("fg", "card"), ("fg", "r1"), ("fg", "r2"), ("f3", "r3"), ("f4", "r4"), ("dim", "card"), ("link", "card")]
    for text, behind in pairs:
        low, high = sorted((colour[text], colour[behind]))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, behind)


# ------------------------------------------------------------------------------------------------ the real program

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes and signals")


@posix
def test_traces_come_as_the_records_do(start):
    process = start("trace", "--jsonl", "--json")
    for i in range(3):
        process.stdin.write(b'{"text": "BAD %d"}\n' % i)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["index"] == i
    process.stdin.close()
    assert process.wait(60) == 1


@posix
@pytest.mark.parametrize("args", [(), ("-",)])
def test_the_page_does_not_overwrite_standard_input(start, tmp_path, args):
    log = tmp_path / "log.txt"
    log.write_text("BAD", encoding="utf-8")
    with log.open("rb") as file:
        process = start("trace", "--html", str(log), *args, stdin=file)
        assert process.wait(60) == 2
    assert b"--html would overwrite the input" in process.stderr.read()
    assert log.read_text(encoding="utf-8") == "BAD"


@posix
def test_a_closed_pipe_is_quiet(start):
    read, write = os.pipe()
    os.close(read)
    process = start("trace", stdout=write)
    os.close(write)
    process.stdin.write(b"hello")
    process.stdin.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""


@posix
def test_ctrl_c_keeps_what_is_known(start, tmp_path):
    page = tmp_path / "page.html"
    process = start("trace", "--jsonl", "--html", str(page))
    process.stdin.write(b'{"text": "BAD"}\n')
    process.stdin.flush()
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert b"Traceback" not in process.stderr.read()
    assert "Interrupted" in page.read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8").endswith("</html>\n")


def test_nano(start, tmp_path):
    path = tmp_path / "chats.jsonl"
    harm = "I will kill them all tonight with a pipe bomb and hide the bodies."
    path.write_text(jsonl({"reasoning_content": harm, "response": "Tomatoes need sun."}, {"text": "Hello."}))
    process = start("trace", "--json", "--html", str(tmp_path / "page.html"), str(path), real=True)
    out, err = process.communicate(timeout=120)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["outcome"] for row in rows] == ["reasoning_only", "safe"], err
    assert process.returncode == (1 if rows[0]["action"] == "block" else 0)
    assert Reading((tmp_path / "page.html").read_text(encoding="utf-8")).texts == [harm, "Tomatoes need sun.", "Hello."]


def test_the_line_and_the_page_name_the_worst_sentence(cli, tmp_path):
    calm = "All is well here. "
    text = f"{calm * 400}Well, HMM. {calm * 100}Then do the BAD thing. {calm * 500}"
    page = tmp_path / "page.html"
    result = cli("trace", "--whole", "--html", str(page), stdin=text)
    assert "worst in sentence 502 of 1,002, from sentence 401" in result.out
    assert '"Then do the BAD thing."' in result.out
    html = page.read_text(encoding="utf-8")
    assert 'The worst is <a href="#t0p0s501">sentence 502</a>: <q>Then do the BAD thing.</q>' in html
    assert 'id="t0p0s501"' in html
    assert cli("trace", "--json", stdin=text).rows[0]["parts"][0]["worst"] == 501
