"""A guard tells nobody that it ran, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECK = "from guardkit import Guard; print(Guard.load('nano', threads=1).check('hello there').severity.value)"


def test_a_check_leaves_nothing_in_the_users_folders(tmp_path: Path) -> None:
    """ONNX Runtime would keep a device's id there."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    env |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", CHECK], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "safe\n"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_choice_that_was_made_is_kept() -> None:
    program = "import os, guardkit.ort; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, kept in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        env = {
            **{n: v for n, v in os.environ.items() if n != "ORT_DISABLE_TELEMETRY"},
            "PYTHONPATH": str(ROOT),
            **given,
        }
        assert subprocess.check_output([sys.executable, "-c", program], env=env, text=True).strip() == kept
