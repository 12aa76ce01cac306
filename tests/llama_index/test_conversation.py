"""Twenty turns, three of them blocked at different stages, the chat store read again by another process half-way."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.leaks import VIOLATION, check_no_trace
from tests.llama_index.conversation import BLOCKED, EXITS, TURNS, halves


@pytest.mark.parametrize("kind", ["chat", "agent"])
def test_the_harmless_turns_are_answered_and_the_blocked_text_is_nowhere(kind: str, tmp_path: Path):
    first = halves(kind, TURNS[:10], tmp_path)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.llama_index.conversation", kind, "10", "20", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "integrations"), *sys.path])},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    second = json.loads(done.stdout.splitlines()[-1])
    check_no_trace([first, second], "what was said and asked")
    for exit_behavior in EXITS:
        later = second[exit_behavior]
        said = {**first[exit_behavior]["said"], **{int(turn): text for turn, text in later["said"].items()}}
        for turn in TURNS:
            if turn not in BLOCKED:
                assert said[turn] == f"answer {turn}"
            elif exit_behavior == "error":
                assert said[turn].startswith("raised: ")
            elif exit_behavior == "end" or kind == "chat":
                assert VIOLATION in said[turn]
        with sqlite3.connect(tmp_path / exit_behavior) as store:
            (table,) = [name for (name,) in store.execute("select name from sqlite_master where type = 'table'")]
            kept = "\n".join(map(str, store.execute(f"select * from {table}").fetchall()))
        check_no_trace(kept, "the store")
        assert "answer 19" in kept
        assert "answer 3" in later["asked"][-1]  # what was said before the other process is remembered
