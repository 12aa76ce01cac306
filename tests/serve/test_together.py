"""The metrics of several workers, added up."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

from starlette.testclient import TestClient

from guardkit.testing import FakeGuard
from guardkit_serve import Settings, create_app
from guardkit_serve.observe import Observer
from guardkit_serve.together import Together

OTHER = """# HELP guardkit_verdicts_total Texts
# TYPE guardkit_verdicts_total counter
guardkit_verdicts_total{model="fake",stage="prompt",severity="unsafe",category="violent",action="block"} 5.0
# HELP guardkit_verdicts_created Texts
# TYPE guardkit_verdicts_created gauge
guardkit_verdicts_created{model="fake",stage="prompt",severity="unsafe",category="violent",action="block"} 7.0
# HELP guardkit_serve_requests_open Open
# TYPE guardkit_serve_requests_open gauge
guardkit_serve_requests_open 3.0
# HELP guardkit_serve_added_first_seconds Added
# TYPE guardkit_serve_added_first_seconds histogram
guardkit_serve_added_first_seconds_bucket{le="0.001"} 2.0
guardkit_serve_added_first_seconds_bucket{le="+Inf"} 4.0
guardkit_serve_added_first_seconds_count 4.0
guardkit_serve_added_first_seconds_sum 9.0
"""


def _ended() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def _values(text: str) -> dict[str, float]:
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_counts_are_added_and_what_an_ended_worker_had_open_is_not(tmp_path: Path) -> None:
    observer = Observer(folder=tmp_path)
    app = create_app(FakeGuard({"bad": "unsafe"}), Settings(access_log=False), observer=observer)
    http = TestClient(app, base_url="http://127.0.0.1")
    http.post("/v1/check", json={"text": "bad"})
    observer.forwarded(True, 0.0004)
    (tmp_path / f"{os.getppid()}.prom").write_text(OTHER)
    (tmp_path / f"{_ended()}.prom").write_text(OTHER)
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = _values(answer.text)
    labels = 'action="block",category="violent",model="fake",severity="unsafe",stage="prompt"'
    by_labels = {
        name.partition("{")[0]: value
        for name, value in found.items()
        if set(labels.split(",")) <= set(name.partition("{")[2].rstrip("}").split(","))
    }
    assert by_labels["guardkit_verdicts_total"] == 11.0
    assert by_labels["guardkit_verdicts_created"] == 7.0
    assert found["guardkit_serve_requests_open"] == 4.0  # this one, and three of the worker that lives
    assert found['guardkit_serve_added_first_seconds_bucket{le="0.001"}'] == 5.0
    assert found['guardkit_serve_added_first_seconds_bucket{le="+Inf"}'] == 9.0
    assert found["guardkit_serve_added_first_seconds_count"] == 9.0
    assert answer.text.count("# TYPE guardkit_verdicts_total counter") == 1


def test_it_leaves_whole_files_and_ends_with_its_owner(tmp_path: Path) -> None:
    before = threading.active_count()
    together = Together(tmp_path, lambda: OTHER.encode())
    together.leave()
    assert [path.name for path in tmp_path.iterdir()] == [f"{os.getpid()}.prom"]
    together.close()
    del together
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "guardkit-metrics":
            thread.join(60)
    assert threading.active_count() <= before
