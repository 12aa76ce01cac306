"""`guard check` shows why: the place, the threshold, the summary, redaction, what the model was not measured on."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardkit.coverage import Coverage
from guardkit.testing import FakeGuard
from guardkit_cli import loading
from guardkit_cli.excerpt import columns, excerpt

CALM = "All is well here. "
RUSSIAN = "Завтра в библиотеке пройдёт встреча читателей."


def test_the_place_is_marked_and_in_the_json(cli):
    text = CALM * 20 + "This is BAD now. " + CALM * 20
    line = cli("check", text).out
    assert "[[This is BAD now.]]" in line
    assert line.count("…") == 2
    row = cli("check", "--json", text).rows[0]
    assert text[row["char_start"] : row["char_end"]] == "This is BAD now."
    assert "threshold" in row
    for key in ("char_start", "char_end", "threshold", "coverage", "redacted"):
        assert key not in cli("check", "--json", "fine").rows[0]


def test_colour_marks_it_on_a_terminal(cli, monkeypatch):
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    assert "\x1b[1;31mThis is BAD.\x1b[0m" in cli("check", "Hello. This is BAD.").out


def test_the_place_of_a_chat_counts_in_its_answer(cli):
    chat = {"prompt": "BAD idea", "response": f"{CALM * 3}This is BAD now. {CALM}"}
    result = cli("check", "--jsonl", "--json", stdin=json.dumps(chat))
    row = result.rows[0]
    assert chat["response"][row["char_start"] : row["char_end"]] == "This is BAD"
    assert "[[This is BAD]]" in cli("check", "--jsonl", stdin=json.dumps(chat)).out


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_rows_fit_the_line(cli, monkeypatch, tmp_path, width):
    monkeypatch.setenv("COLUMNS", str(width))
    one, two = tmp_path / "a-rather-long-name-of-a-file.log", tmp_path / "b"
    one.write_text(f"{CALM * 9}This is BAD now. {CALM * 9}\nfine\nHMM\nBOOM\n漢字{'漢字' * 40}BAD\n")
    two.write_text("BAD " * 99)
    for files in ([one], [one, two]):
        out = cli("check", *(a for f in files for a in ("-i", str(f))), "--on-error", "allow").out
        assert len(out.splitlines()) == (5 if len(files) == 1 else 6)
        for line in out.splitlines():
            assert columns(line) <= width, line


@given(
    st.text(alphabet="ab 漢\n\x1b", max_size=60),
    st.text(alphabet="xy 字", min_size=1, max_size=60),
    st.text(alphabet="ab 漢", max_size=60),
    st.integers(12, 70),
)
def test_an_excerpt_fits_and_holds_its_place(before: str, inside: str, after: str, width: int) -> None:
    text = before + inside + after
    line = excerpt(text, (len(before), len(before) + len(inside)), width)
    assert columns(line) <= width
    assert "[[" in line
    shown = line[line.index("[[") + 2 : line.index("]]")]
    assert inside.startswith(shown.removesuffix("…"))
    assert "\x1b" not in line


class _Limits(FakeGuard):
    def __init__(self, **settings: Any):
        super().__init__({"BAD": "unsafe", "HMM": "controversial"}, **settings)


@pytest.fixture
def limited(cli, monkeypatch):
    def load_guard(model: str, *, policy: str | None = None, threshold: float | None = None, **_: Any) -> FakeGuard:
        guard = _Limits(policy=policy or "balanced", threshold=threshold)
        guard.model.coverage = Coverage({"en": {}})
        return guard

    monkeypatch.setattr(loading, "load_guard", load_guard)
    return cli


def test_the_score_stands_beside_its_threshold(limited):
    assert "unsafe        0.90 of 0.50" in limited("check", "--threshold", "0.5", "BAD").out
    assert "safe          0.10 of 0.50" in limited("check", "--threshold", "0.5", "fine").out
    row = limited("check", "--json", "--threshold", "0.5", "BAD").rows[0]
    assert row["threshold"] == 0.5
    assert limited("check", "--threshold", "0.97", "BAD").code == 0
    for bad in ("0", "1.1", "x"):
        assert limited("check", "--threshold", bad, "BAD").code == 2
    assert "instead of the model's own" in " ".join(limited("check", "--help").out.split())


def test_rounding_never_contradicts_the_severity(limited):
    assert "safe          0.09 of 0.10" in limited("check", "--threshold", "0.1004", "fine").out  # 0.1, rounded


def test_what_was_not_measured_is_noted(limited):
    result = limited("check", "--json", stdin=f"fine\n{RUSSIAN}\n")
    assert [row.get("coverage") for row in result.rows] == [None, "unmeasured"]
    assert [row["action"] for row in result.rows] == ["allow", "flag"]
    assert "1 record in a language or script that the model was not measured on" in result.err
    assert result.code == 0


def test_redacted_text_is_printed_and_counted(cli, tmp_path):
    policy = tmp_path / "p.yaml"
    policy.write_text("rules:\n  - severity: unsafe\n    action: redact\n")
    text = f"Hello. This is BAD. {CALM}Worse is BAD too. Bye."
    result = cli("check", "--policy", str(policy), text, "fine")
    assert f"Hello. [redacted] {CALM}[redacted] Bye." in result.out
    assert "1 redacted, 0 blocked" in result.err
    assert result.code == 0
    row = cli("check", "--json", "--policy", str(policy), text).rows[0]
    assert (row["action"], row["redacted"]) == ("redact", f"Hello. [redacted] {CALM}[redacted] Bye.")


def test_the_summary_alone(cli, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text(f"fine\n{CALM}This is BAD.\nHMM\n")
    two.write_text("the one that is HMM and not fine\nBOOM\n")
    result = cli("check", "--summary", "-i", str(one), "-i", str(two))
    assert result.code == 3
    lines = result.out.splitlines()
    assert lines[0].startswith("5 records: 2 flagged, 1 blocked, 1 not judged")
    assert "categories: violent 3" in lines
    assert any(line.startswith("files: ") and f"{one} 2 of 3" in line for line in lines)
    assert any(line.startswith("languages: ") and "English" in line for line in lines)
    assert any(line.startswith("not judged: 1 × ") and "boom" in line for line in lines)
    assert "block " in lines[5]
    assert "[[This is BAD.]]" in lines[5]
    data = json.loads(cli("check", "--summary", "--json", "--top", "1", "-i", str(one), "-i", str(two)).out)
    assert data["records"] == 5
    assert data["actions"] == {"allow": 1, "flag": 2, "redact": 0, "block": 1, "not judged": 1}
    assert [row["action"] for row in data["worst"]] == ["block"]
    assert data["files"][str(two)] == {"flag": 1, "not judged": 1}


def test_top_shows_the_worst_first(cli):
    result = cli("check", "--top", "2", "--json", stdin="HMM\nfine\nBAD\nHMM\n")
    worst = [line for line in result.err.splitlines() if not line.startswith("guard:")]
    assert [line.split()[0] for line in worst] == ["block", "flag"]
    assert len(result.rows) == 4
    assert cli("check", "--summary", "--quiet", "x").code == 2
    assert cli("check", "--top", "-1", "x").code == 2


def test_a_summary_is_kept_small(cli):
    result = cli("check", "--top", "3", "--quiet", stdin="BAD\n" * 2000)
    assert result.code == 1
    assert result.out == ""


def test_the_log_of_the_cookbook_raises_no_note() -> None:
    from guardkit import Guard

    log = Path(__file__).parents[2] / "cookbook" / "app.log"
    guard = Guard.load()
    lines = io.StringIO(log.read_text(encoding="utf-8")).read().splitlines()
    assert all(v.coverage is None for v in guard.check_batch(lines[:60]))


def test_the_text_in_the_json_is_the_one_that_the_place_counts_in(cli):
    records = [
        {"response": "calm words of an answer", "reasoning_content": "calm. This is BAD. calm."},
        {
            "messages": [
                {"role": "assistant", "content": "calm", "tool_calls": [{"name": "run", "args": {"a": "is BAD"}}]}
            ]
        },
        {"choices": [{"message": {"content": "calm one"}}, {"message": {"content": "calm. Second is BAD."}}]},
    ]
    result = cli("check", "--jsonl", "--json", "--text", stdin="\n".join(map(json.dumps, records)))
    assert ["BAD" in row["text"][row["char_start"] : row["char_end"]] for row in result.rows] == [True] * 3
