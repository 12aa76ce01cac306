"""The soak of nano runs, on few callers: its checks hold there too."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "nano_soak.py"


def test_the_soak_of_nano_finds_nothing_wrong() -> None:
    options = ["--threads", "6", "--tasks", "16", "--rounds", "2", "--each", "4", "--sample", "30", "--idle-s", "0.1"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"[1-9]\d* verdicts compared .*: 0 differ", done.stdout)
    rows = re.findall(r"^\| (\d+ (?:thread|task)s?) \| (\d+) \| (\d+) ", done.stdout, re.MULTILINE)
    assert [name for name, _, _ in rows][-2:] == ["6 threads", "16 tasks"]
    assert sum(int(given_up) for _, _, given_up in rows) > 0
    assert sum(int(judged) + int(given_up) for _, judged, given_up in rows) == 12 * 2 + 2 * (24 + 32)
