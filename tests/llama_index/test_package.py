"""The package's shape, and the programs in its documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import llama_index.postprocessor.guardkit as package
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "integrations" / "llama_index" / "postprocessor" / "guardkit"


def test_every_export_exists():
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert len(set(package.__all__)) == len(package.__all__)


def test_namespaces_stay_namespaces():
    for folder in (FOLDER.parent, FOLDER.parent.parent):
        assert not (folder / "__init__.py").exists()
    assert (FOLDER / "py.typed").exists()


def test_modules_can_be_read_at_one_sitting():
    for path in FOLDER.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 420, path


def test_without_llama_index_the_error_names_the_extra():
    code = "import sys; sys.modules['llama_index.core'] = None; import llama_index.postprocessor.guardkit"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "integrations", check=False
    )
    assert "MissingExtra" in done.stderr
    assert "guardkit[llama-index]" in done.stderr


def blocks() -> list[str]:
    text = (ROOT / "docs" / "llama_index.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


@pytest.mark.parametrize("block", blocks(), ids=["query", "policy", "agent", "observe", "workflow"])
def test_the_programs_in_the_documentation_run(block: str, tmp_path: Path):
    program = tmp_path / "block.py"
    program.write_text(block, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'integrations'}", "PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
