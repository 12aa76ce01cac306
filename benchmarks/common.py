"""What the benchmarks share: the header, timing, memory of this and other processes, tables, harmless texts.

Run as a script it prints the header alone.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# An installer compiles modules. Where the environment keeps Python from writing that down, every process that is
# measured would compile guardkit's anew, and those of no other package.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    os.environ["PYTHONPYCACHEPREFIX"] = os.path.join(tempfile.gettempdir(), f"guardkit-bytecode-{os.getpid()}")
    atexit.register(shutil.rmtree, os.environ["PYTHONPYCACHEPREFIX"], ignore_errors=True)

# ------------------------------------------------------------------------------------------------------ header


def header(title: str, *packages: str) -> None:
    """What was measured where, and when; with the versions of `packages`."""
    if find_spec("guardkit") is None:
        sys.exit(f"{sys.executable} has no guardkit: run the benchmarks in the environment where it is installed")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    versions = ", ".join(f"{name} {version(name)}" for name in ("guardkit", "onnxruntime", "numpy", *packages))
    print(f"# {title}\n")
    print(f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC")
    masked = ", its CPUID masked to AVX2" if "avx512" in os.environ.get("LD_PRELOAD", "") else ""  # without_avx512.c
    print(f"- CPU: {cpu_model()}{masked}, {usable} cores usable of {os.cpu_count()}; memory {total_memory()}")
    print(f"- system: {platform.system()} {platform.release()}, {platform.machine()}")
    print(f"- Python {platform.python_version()}; {versions}")
    print(f"- command: python {' '.join([f'benchmarks/{Path(sys.argv[0]).name}', *sys.argv[1:]])}")
    print(f"- load average at the start: {load:.2f}{busy(load)}\n", flush=True)


def busy(load: float) -> str:
    return " **(the machine was busy with something else: do not quote these figures)**" if load > 0.5 else ""


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return asked.stdout.strip() or platform.processor()
    return platform.processor() or "unknown"


def total_memory() -> str:
    try:
        return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
    except (AttributeError, OSError, ValueError):
        return "unknown"


# ------------------------------------------------------------------------------------------------------ figures


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A Markdown table, to be pasted into docs/performance.md as it is."""
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def mib(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def note(text: str) -> None:
    """Progress, and what is not a figure; on stderr."""
    print(text, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------ memory


def rss_mib(pid: int | str = "self", field: str = "VmRSS") -> float | None:
    """Resident memory of a process now (VmRSS) or at most so far (VmHWM); None where /proc does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    return None


def own_peak_mib() -> float | None:
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def children_cpu_s() -> float:
    """CPU seconds of all child processes that have ended."""
    if resource is None:
        return float("nan")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Watch:
    """Samples the memory of a running child. `ru_maxrss` will not do: a child starts with the peak of its parent."""

    def __init__(self, pid: int, every_s: float = 0.02):
        self.last: float | None = None
        self.peak: float | None = None
        self._pid, self._every_s, self._over = pid, every_s, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._over.is_set():
            now, peak = rss_mib(self._pid), rss_mib(self._pid, "VmHWM")
            if now is not None and peak is not None:
                self.last, self.peak = now, peak
            self._over.wait(self._every_s)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


# ---------------------------------------------------------------------------------------------------- processes


@dataclass(frozen=True)
class Ran:
    seconds: float
    cpu_s: float
    code: int
    stderr: str


def run(command: Sequence[str], stdin: bytes = b"") -> Ran:
    """Run a command to its end: wall and CPU time of the whole process."""
    cpu, start = children_cpu_s(), time.perf_counter()
    done = subprocess.run(command, input=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    seconds = time.perf_counter() - start
    return Ran(seconds, children_cpu_s() - cpu, done.returncode, done.stderr.decode("utf-8", "replace"))


def peak_of(command: Sequence[str], stdin: bytes = b"", every_s: float = 0.001) -> float | None:
    """The most memory a command takes, in MiB; a run of its own, as the sampling costs time."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    watch = Watch(process.pid, every_s)
    process.communicate(stdin)
    watch.stop()
    return watch.peak


def guard_command(*args: str) -> list[str]:
    """The `guard` installed next to this interpreter, or else the module."""
    beside = shutil.which("guard", path=str(Path(sys.executable).parent))
    return [beside, *args] if beside else [sys.executable, "-m", "guardkit_cli", *args]


def check_guard(ran_code: int, stderr: str) -> None:
    """`guard check` ends with 0 or 1; anything else makes a measurement worthless."""
    if ran_code not in (0, 1):
        sys.exit(f"`guard check` ended with status {ran_code}; nothing was measured:\n{stderr[-2000:]}")


# -------------------------------------------------------------------------------------------------------- texts

_WHO = (
    "my neighbour",
    "our team",
    "the new colleague",
    "a customer",
    "my sister",
    "the teacher",
    "our landlord",
    "a friend of mine",
)
_DID = (
    "forgot to answer",
    "finally repaired",
    "wants to compare",
    "asked me about",
    "could not find",
    "has just ordered",
    "is looking for",
    "would like to return",
    "keeps talking about",
    "was happy with",
)
_WHAT = (
    "the garden chairs",
    "a train ticket to Lyon",
    "the last invoice",
    "a recipe for lentil soup",
    "the printer in the hallway",
    "three kinds of cheese",
    "the meeting on Thursday",
    "a book about volcanoes",
    "the broken bicycle",
    "our holiday photos",
)
_WHY = (
    "because the shop was closed",
    "before the weekend starts",
    "although it was raining",
    "after a long phone call",
    "so that we can plan the budget",
    "while the kettle was boiling",
    "and nobody noticed",
    "as the manual says on page 12",
)
_ASK = (
    "Can you help me with that?",
    "What should I write back?",
    "How long does it usually take?",
    "Which one is cheaper?",
    "Could you make a short list?",
    "Is that normal?",
    "Thanks in advance!",
    "Please keep it friendly.",
)


def sentence(rng: random.Random) -> str:
    """A harmless sentence of about fifteen words; one in eight with a look-alike of harm that is none."""
    text = f"{rng.choice(_WHO)} {rng.choice(_DID)} {rng.choice(_WHAT)} {rng.choice(_WHY)}"
    if rng.random() < 0.125:
        text += f" and how do I kill the process with pid {rng.randrange(300, 60000)}"
    return text[0].upper() + text[1:] + "."


def question(rng: random.Random) -> str:
    return f"{sentence(rng)} {rng.choice(_ASK)}"


def words(seed: int) -> Iterator[str]:
    """Prose without end, a word and its space at a time."""
    rng = random.Random(seed)
    while True:
        for word in sentence(rng).split(" "):
            yield word + " "


if __name__ == "__main__":
    header("This machine")
