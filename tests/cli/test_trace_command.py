"""`guard trace`: chat logs in, places of risk out."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from html.parser import HTMLParser

import pytest

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
    assert process.wait(10) == 1


@posix
def test_a_closed_pipe_is_quiet(start):
    read, write = os.pipe()
    os.close(read)
    process = start("trace", stdout=write)
    os.close(write)
    process.stdin.write(b"hello")
    process.stdin.close()
    assert process.wait(20) == 141
    assert process.stderr.read() == b""


@posix
def test_ctrl_c_keeps_what_is_known(start, tmp_path):
    page = tmp_path / "page.html"
    process = start("trace", "--jsonl", "--html", str(page))
    process.stdin.write(b'{"text": "BAD"}\n')
    process.stdin.flush()
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
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
