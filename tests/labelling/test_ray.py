"""The Ray engine on a local cluster: actors die, a disk is full, and every row is there once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="the ray extra is not installed: pip install 'guardkit[ray]'")
pytestmark = pytest.mark.slow

from guardkit.labelling import Labeller  # noqa: E402
from guardkit.labelling.inputs import find  # noqa: E402
from guardkit.labelling.jobs import Job, Place, Settings, jobs_of  # noqa: E402
from guardkit.labelling.ray_engine import RayOptions, RayRun  # noqa: E402
from guardkit.labelling.run import Run  # noqa: E402
from guardkit.testing import FakeGuard  # noqa: E402
from tests.labelling.conftest import read_jsonl, write_jsonl  # noqa: E402

SCRIPT: dict[str, Any] = {"BAD": "unsafe"}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    for left in (2, 1, 0):
        try:
            ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, _node_ip_address="127.0.0.1")
            break
        except Exception:  # a node that is not up in 30 seconds: a machine that is busy with something else
            ray.shutdown()
            if not left:
                raise
    yield
    ray.shutdown()


def made(folder: Path, n: int, name: str = "a.jsonl") -> Path:
    return write_jsonl(folder / name, [{"id": i, "text": f"row {i}{' BAD' * (i % 7 == 0)}"} for i in range(n)])


def jobs(source: Path, out: Path) -> tuple[list[Job], Place]:
    inputs = find([str(source)]).inputs
    place = Place.of(str(out), inputs)
    return jobs_of(inputs, place, None), place


def alone(source: Path, out: Path) -> bytes:
    found, place = jobs(source, out)
    Run(found, place, Labeller(FakeGuard(SCRIPT)).judge, Settings()).run()
    return out.read_bytes()


def workers() -> list[int]:
    """The processes of actors that judge."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if b"MapWorker" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_actors_are_killed_and_every_row_is_there_once(tmp_path: Path) -> None:
    source = made(tmp_path, 8000)
    found, place = jobs(source, tmp_path / "out.jsonl")
    labeller = Labeller(FakeGuard(SCRIPT, delay=0.02))
    settings = Settings(batch_rows=50)
    done = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        while not done.is_set() and len(killed) < 3:
            time.sleep(1.0)
            for pid in [p for p in workers() if p not in killed][:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=kill)
    run = RayRun(found, place, labeller, settings, RayOptions(actors=(2, 2), split_rows=1000))
    thread.start()
    try:
        total = run.run()
    finally:
        done.set()
        thread.join()
    assert total.rows == 8000
    assert killed
    assert (tmp_path / "out.jsonl").read_bytes() == alone(source, tmp_path / "alone.jsonl")


def test_it_goes_on_where_the_local_engine_stopped_and_the_other_way_round(tmp_path: Path) -> None:
    made(tmp_path / "in", 3000)
    (tmp_path / "in" / "b.jsonl").write_bytes(b"\n\n" + (tmp_path / "in" / "a.jsonl").read_bytes() + b"\n{}")
    (tmp_path / "in" / "c.csv").write_text("text\nfine\nBAD\n")
    found, place = jobs(tmp_path / "in", tmp_path / "out")
    told: list[int] = []
    options = RayOptions(actors=(1, 2), split_rows=700)
    run = RayRun(found, place, Labeller(FakeGuard(SCRIPT)), Settings(), options, told=lambda _, t: told.append(t.rows))
    total = run.run()
    assert total.rows == sum(told) == 6003
    assert len(told) == 5 + 5 + 1
    again = Run(found, place, Labeller(FakeGuard()).judge, Settings(), told=lambda _, t: told.append(t.rows))
    before = len(told)
    assert again.run().to_dict() == total.to_dict()
    assert len(told) == before
    assert [r.get("id") for r in read_jsonl(tmp_path / "out" / "b.jsonl")] == [*range(3000), None]


def test_errors_are_tried_again_and_an_input_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    made(tmp_path / "in", 300)
    (tmp_path / "in" / "bad.parquet").write_bytes(b"PAR1 no")
    found, place = jobs(tmp_path / "in", tmp_path / "out")
    problems: list[str] = []
    failing = Labeller(FakeGuard({**SCRIPT, "row 2": RuntimeError("down")}))
    options = RayOptions(split_rows=100)
    total = RayRun(found, place, failing, Settings(), options, problem=lambda j, _: problems.append(j.name)).run()
    assert problems == ["bad.parquet"]
    assert total.not_judged == 111
    retry = Settings(retry_errors=True)
    total = RayRun(
        found, place, Labeller(FakeGuard(SCRIPT)), retry, options, problem=lambda j, _: problems.append(j.name)
    ).run()
    assert total.not_judged == 0
    assert (tmp_path / "out" / "a.jsonl").read_bytes() == alone(tmp_path / "in" / "a.jsonl", tmp_path / "alone.jsonl")


def test_a_full_disk_is_told_and_the_next_run_goes_on(tmp_path: Path) -> None:
    source = made(tmp_path, 2000)
    found, place = jobs(source, tmp_path / "out" / "out.jsonl")
    blocked = tmp_path / "out" / "out.jsonl.guardkit" / "shards" / "out.jsonl"
    blocked.mkdir(parents=True)
    small = Labeller(SmallFiles(SCRIPT))
    with pytest.raises(OSError, match="File too large"):
        RayRun(found, place, small, Settings(), RayOptions(split_rows=500)).run()
    assert RayRun(found, place, Labeller(FakeGuard(SCRIPT)), Settings(), RayOptions()).run().rows == 2000
    assert (tmp_path / "out" / "out.jsonl").read_bytes() == alone(source, tmp_path / "alone.jsonl")


class SmallFiles(FakeGuard):
    """A guard in whose process no file can be larger than a few bytes."""

    def decide_batch(self, *args: Any, **settings: Any) -> Any:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
        return super().decide_batch(*args, **settings)


def test_all_actors_keep_one_rate(tmp_path: Path) -> None:
    source = made(tmp_path, 400)
    found, place = jobs(source, tmp_path / "out.jsonl")
    options = RayOptions(actors=(2, 2), split_rows=100, rate=100)
    start = time.monotonic()
    RayRun(found, place, Labeller(FakeGuard(SCRIPT)), Settings(batch_rows=20), options).run()
    assert time.monotonic() - start >= 2.9  # 400 rows, the first 100 at once


def test_a_labeller_in_a_pipeline_of_ones_own(tmp_path: Path) -> None:
    import ray.data

    rows = ray.data.from_items([{"id": i, "text": "BAD" if i % 5 == 0 else "fine"} for i in range(100)])
    kwargs = {"model": FakeGuard(SCRIPT)}
    pool = ray.data.ActorPoolStrategy(size=1)
    labelled = rows.map_batches(Labeller, fn_constructor_kwargs=kwargs, compute=pool, batch_size=20)
    found = sorted(labelled.take_all(), key=lambda r: r["id"])
    assert [r["guardkit"]["severity"] for r in found] == ["unsafe", "safe", "safe", "safe", "safe"] * 20


def test_the_command(tmp_path: Path) -> None:
    source = made(tmp_path, 60)
    command = [sys.executable, "-m", "guardkit_cli", "label", str(source), "--out", str(tmp_path / "out.jsonl")]
    address = ray.get_runtime_context().gcs_address
    on_ray = [*command, "--engine", "ray", "--ray-address", address]
    done = subprocess.run(on_ray, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "60 rows" in done.stderr
    assert {json.dumps(r["guardkit"]["model"]) for r in read_jsonl(tmp_path / "out.jsonl")} == {'"nano"'}
    assert subprocess.run(command, capture_output=True, timeout=100).returncode == 0  # nothing is left to do
