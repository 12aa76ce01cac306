"""Sentences over several lines of a document: judged as a whole too, and shown only where that is worse."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from guardkit.testing import FakeGuard
from guardkit_cli.judging import Judge
from guardkit_cli.output import Row
from guardkit_cli.passages import MAX_CHARS, MAX_LINES
from guardkit_cli.records import Reader, Source

HARM = "secret plan of the villain"
WHOLE: dict[str, str] = {
    "a.md": "# Title\n\nA first sentence. This is the secret\nplan of the villain, and more.\n",
    "b.md": "> this is the secret plan\n> of the villain\n",
    "c.txt": "it is the se-\ncret plan of the vil-\nlain\n",
    "d.txt": "ein Satz über den secret plan\nof the villain hinweg\n",
    "a.html": "<p>it is <b>the secret</b>\n   <i>plan of</i> the\n<b>villain</b> here</p>\n",
    "a.py": "x = 1\n# it is the secret plan of\n# the villain as we know\ny = 2\n",
    "b.py": 'def f():\n    """It is the secret plan\n    of the villain as we know.\n    """\n',
    "a.c": "/*\n * it is the secret plan of\n * the villain as we know\n */\n",
    "c.py": "x = ('it is the secret plan '\n     'of the villain')\n",
    "a.sql": "-- it is the secret plan of\n-- the villain as we know\n",
    "a.yaml": "a: fine\nb: >\n  it is the secret\n  plan of the\n  villain\n",
    "a.toml": 'a = """\nit is the secret \\\n  plan of the villain"""\n',
    "a.ini": "[a]\nq = it is the secret\n    plan of the villain\n",
    "a.ics": "BEGIN:VEVENT\nDESCRIPTION:it is the sec\n ret plan of the vil\n lain\nEND:VEVENT\n",
    "a.srt": "1\n00:00:01,5 --> 00:00:02,5\nit is the secret\n\n2\n00:00:02,5 --> 00:00:03,5\nplan of the villain\n",
    "a.vtt": "WEBVTT\n\n00:01.000 --> 00:02.000\nit is the secret\n\n00:02.000 --> 00:03.000\nplan of the villain\n",
    "a.lrc": "[00:01.00]it is the secret\n[00:02.00]plan of the villain\n",
    "a.po": 'msgid ""\n"it is the secret "\n"plan of the villain"\nmsgstr ""\n',
    "a.eml": "Subject: hi\n\nit is the se=\ncret plan of the vil=\nlain\n",
    "a.mht": "<p>it is the secret =\nplan of the villain</p>\n",
    "b.eml": "c2VjcmV0IHBsYW4gb2Yg\ndGhlIHZpbGxhaW4gaGVy\nZQ==\n",
    "chat.txt": "12/11/26, 10:00 - Ann: it is the secret\n12/11/26, 10:01 - Ann: plan of the villain\n",
    "words.txt": "it\nis\nthe\nsecret\nplan\nof\nthe\nvillain\n",
    "down.txt": "".join(f"{letter}\n" for letter in "it is the secret plan of the villain"),
}
CUT = {
    "cri.log": "2026-11-26T10:00:00.1Z stdout P it is the sec\n2026-11-26T10:00:00.1Z stderr F fine\n"
    "2026-11-26T10:00:00.2Z stdout P ret plan of\n2026-11-26T10:00:00.3Z stdout F  the villain\n",
    "docker.log": '{"log":"it is the sec","stream":"stdout"}\n{"log":"fine\\n","stream":"stderr"}\n'
    '{"log":"ret plan of the villain\\n","stream":"stdout"}\n',
    "cri that ends in a line.log": "2026-11-26T10:00:00.1Z stdout P it is the sec\n"
    "2026-11-26T10:00:00.2Z stdout P ret plan of the villain\n",
    "docker that ends in a line.log": '{"log":"it is the sec","stream":"stdout"}\n'
    '{"log":"ret plan of the villain","stream":"stdout"}\n',
}


@pytest.mark.parametrize("name", CUT)
def test_lines_that_a_container_s_log_cuts_are_put_together(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(CUT[name])
    assert [(row.record.line, row.record.over, row.action) for row in rows_of(path)][-1] == (
        1, CUT[name].count("\n"), "block",
    )  # fmt: skip
    assert len(rows_of(path)) == CUT[name].count("\n") + 1


APART = {
    "full stop.md": "It is the secret.\nPlan of the villain.\n",
    "blank line.md": "it is the secret\n\nplan of the villain\n",
    "items.md": "- the secret\n- plan of the villain\n* plan of the villain\n1. plan of the villain\n",
    "log.txt": "INFO the secret\nINFO plan of the villain\n2026-11-26 12:00 secret\n2026-11-26 plan of the villain\n",
    "names.py": 'names = [\n    "the secret ",\n    "plan of the villain",\n]\n',
    "entry.ini": "the = secret\nplan = of the villain\n",
    "rule.txt": "=========\nthe secret\n=========\nplan of the villain\n",
    "code.py": "the = secret\nplan(of.the, villain)\n",
    "a.log": "it is the secret\nplan of the villain\n",
}


class Unwrapping(FakeGuard):
    """Reads texts as nano does: their normalised views too."""

    def __init__(self) -> None:
        super().__init__({HARM: "unsafe", "hint": "controversial"})
        self.model.judges_normalized_view = True


def rows_of(path: Path, reader: Reader | None = None) -> list[Row]:
    rows: list[Row] = []
    judge = Judge(Unwrapping(), rows.extend, batch_size=3)
    for records in (reader or Reader()).read(Source.open(str(path))):
        judge.add(records)
    judge.flush()
    assert judge.tally.records == len(rows)
    assert [row.index for row in rows] == list(range(len(rows)))
    return rows


@pytest.mark.parametrize("name", WHOLE)
def test_a_sentence_over_lines_is_judged_as_a_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(WHOLE[name], encoding="utf-8")
    rows = rows_of(path)
    assert [row.action for row in rows if not row.record.over] == ["allow"] * WHOLE[name].count("\n")
    found = [row for row in rows if row.record.over]
    assert [row.action for row in found] == ["block"]
    assert found[0].place is not None
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(WHOLE[name].encode()))
    assert [row.action for row in rows_of(packed)] == [row.action for row in rows]


@pytest.mark.parametrize("name", APART)
def test_lines_that_do_not_go_on_are_judged_alone(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(APART[name], encoding="utf-8")
    assert {row.action for row in rows_of(path)} == {"allow"}


def test_a_passage_is_shown_only_where_it_is_worse_than_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(f"a hint and the {HARM}\nwith a hint\n\na hint of the secret\nplan of the villain\n")
    rows = rows_of(path)
    assert [(row.record.line, row.record.over, row.action) for row in rows] == [
        (1, 0, "block"), (2, 0, "flag"), (3, 0, "allow"), (4, 0, "flag"), (5, 0, "allow"), (4, 2, "block"),
    ]  # fmt: skip
    for reader in (Reader(format="text"), Reader(join=True)):
        assert not any(row.record.over for row in rows_of(path, reader))


@pytest.mark.parametrize("at", [0, 8, 9, 10, 200, 397, 398])
def test_a_long_passage_is_cut_with_an_overlap(at: int, tmp_path: Path) -> None:
    lines = ["some words without an end"] * 400
    lines[at : at + 2] = ["here is the secret", "plan of the villain"]
    path = tmp_path / "a.txt"
    path.write_text("\n".join(lines))
    found = [row for row in rows_of(path) if row.record.over]
    assert found
    assert all(row.action == "block" for row in found)
    assert all(at + 1 - MAX_LINES <= row.record.line <= at + 1 for row in found)
    assert all(len(row.text) <= MAX_CHARS + 50 for row in found)
