"""The mask that hides AVX512 from a process."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "benchmarks" / "without_avx512.c"
FEATURES = "from numpy._core._multiarray_umath import __cpu_features__ as f; print(f['AVX512F'], f['AVX2'])"
# A thread, and a program that it starts: both are asked.
SCRIPT = f"""
import subprocess, sys, threading
{FEATURES}
def start():
    print(subprocess.run([sys.executable, "-c", {FEATURES!r}], capture_output=True, text=True, check=True).stdout)
thread = threading.Thread(target=start)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.system() != "Linux" or platform.machine() != "x86_64", reason="CPUID of x86-64 on Linux")
def test_a_process_and_its_children_see_avx2_and_no_avx512(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    flags = Path("/proc/cpuinfo").read_text().split()
    if "cpuid_fault" not in flags or "avx2" not in flags:
        pytest.skip("this CPU cannot let CPUID fault, or has no AVX2")
    mask = tmp_path / "without_avx512.so"
    subprocess.run([compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", mask, SOURCE], check=True)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**os.environ, "LD_PRELOAD": str(mask)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True"] * 2
