"""A run that was killed goes on where it stopped, and gives the same bytes; what does not fit is an error."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.labelling.conftest import Label, read_jsonl, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, str(ROOT / "tests" / "cli" / "fake_guard_program.py"), "label"]


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "cli")])
    return os.environ | {"PYTHONPATH": paths, "XDG_CONFIG_HOME": os.devnull} | more


def test_killed_ten_times_it_gives_what_a_run_left_alone_gives(
    label: Label, tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    for name in ("a.jsonl", "b.jsonl.gz"):
        write_jsonl(tmp_path / "in" / name, records[:1000])
    assert label(tmp_path / "in", "--out", tmp_path / "alone").code == 0
    args = [*PROGRAM, str(tmp_path / "in"), "--out", str(tmp_path / "killed"), "--batch-size", "50"]
    rng, kills = random.Random(7), 0
    while kills < 10:
        process = subprocess.Popen(args, env=environment(SLOW_MS="20"), stderr=subprocess.PIPE)
        assert process.stderr is not None
        if kills % 3:
            process.stderr.readline()  # something is judged
        time.sleep(rng.random() / 3)
        finished = process.poll() is not None
        process.kill()
        process.communicate()
        if finished:
            assert process.returncode == 0
            break
        kills += 1
    assert kills >= 3
    assert subprocess.run(args, env=environment(), capture_output=True, timeout=60).returncode == 0
    for name in ("a.jsonl", "b.jsonl.gz"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_a_finished_run_judges_nothing_again(label: Label, tmp_path: Path, records: list[dict[str, Any]]) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", records)
    for _ in range(2):
        assert label(source, "--out", tmp_path / "out.jsonl").code == 0
    assert label.calls == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").unlink()  # the labels are there still
    assert label(source, "--out", tmp_path / "out.jsonl").code == 0
    assert label.calls == 0
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_ctrl_c_keeps_what_was_judged(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", records)
    args = [*PROGRAM, str(source), "--out", str(tmp_path / "out.jsonl"), "--batch-size", "50"]
    process = subprocess.Popen(args, env=environment(SLOW_MS="50"), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "in.jsonl" in process.stderr.readline()  # the first batch is judged
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "what was judged is kept" in said
    assert list((tmp_path / "out.jsonl.guardkit").rglob("*.labels"))
    assert subprocess.run(args, env=environment(), capture_output=True, timeout=60).returncode == 0
    assert [r["id"] for r in read_jsonl(tmp_path / "out.jsonl")] == list(range(5000))


def test_only_errors_are_judged_again(label: Label, tmp_path: Path, records: list[dict[str, Any]]) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", records)
    assert label(source, "--out", tmp_path / "expected.jsonl").code == 0
    label.scripts["nano"] = {"BAD": "unsafe", "HMM": "controversial", "row 7": RuntimeError("the server is down")}
    done = label(source, "--out", tmp_path / "out.jsonl")
    assert done.code == 3
    assert "the server is down" in done.err
    n_failed = sum("error" in r["guardkit"] for r in read_jsonl(tmp_path / "out.jsonl"))
    assert n_failed > 100
    assert label(source, "--out", tmp_path / "out.jsonl").code == 3  # without the option nothing is judged
    assert label.calls == 0
    del label.scripts["nano"]
    assert label(source, "--out", tmp_path / "out.jsonl", "--retry-errors").code == 0
    assert 0 < label.calls < 5
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "expected.jsonl").read_bytes()
    assert label(source, "--out", tmp_path / "out.jsonl", "--retry-errors").code == 0


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--policy", "strict"], "policy.name was balanced and is strict"),
        (["--model", "other"], "model was nano and is other"),
        (["--column", "labels"], "column was guardkit and is labels"),
        (["--judge", "both"], "judge was last and is both"),
        (["--where", "safe"], "where was not set and is safe"),
        (["--sample", "2"], "sample was not set and is"),
    ],
)
def test_other_settings_are_an_error_that_names_them(label: Label, tmp_path: Path, more: list[str], named: str) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}, {"text": "b"}])
    assert label(source, "--out", tmp_path / "out.jsonl").code == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    done = label(source, "--out", tmp_path / "out.jsonl", *more)
    assert done.code == 2
    assert named in done.err
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_a_changed_input_is_an_error_that_names_it(label: Label, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    assert label(source, "--out", tmp_path / "out.jsonl").code == 0
    write_jsonl(source, [{"text": "b"}])
    done = label(source, "--out", tmp_path / "out.jsonl")
    assert done.code == 3
    assert "in.jsonl: changed since its labelling began" in done.err
    assert read_jsonl(tmp_path / "out.jsonl")[0]["text"] == "a"


def test_an_input_that_changes_while_it_is_labelled_is_not_written(
    label: Label, tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", records)

    class Touching(dict[str, Any]):
        """A script that writes to the input once it is asked."""

        def items(self) -> Any:
            with source.open("a") as file:
                file.write('{"text": "one more"}\n')
            return super().items()

    load = label.load

    def load_touching(model: str, **settings: Any) -> Any:
        guard = load(model, **settings)
        fake: Any = guard.model
        fake._script = Touching(fake._script)
        return guard

    label.load = load_touching  # type: ignore[method-assign]
    from guardkit_cli import loading

    loading.load_guard = load_touching
    done = label(source, "--out", tmp_path / "out.jsonl")
    assert done.code == 3
    assert "changed while it was labelled" in done.err
    assert not (tmp_path / "out.jsonl").exists()
    loading.load_guard = load
    assert label(source, "--out", tmp_path / "out.jsonl").code == 0  # the labels of other rows are not used
    found = read_jsonl(tmp_path / "out.jsonl")
    assert [r["text"] for r in found][: len(records)] == [r["text"] for r in records]
    assert found[-1]["text"] == "one more"
    assert all(r["guardkit"]["severity"] for r in found)


def test_files_may_be_added(label: Label, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": "a"}])
    assert label(tmp_path / "in", "--out", tmp_path / "out").code == 0
    write_jsonl(tmp_path / "in" / "sub" / "a.jsonl", [{"text": "BAD"}])
    assert label(tmp_path / "in", "--out", tmp_path / "out").code == 0
    assert label.calls == 1
    assert read_jsonl(tmp_path / "out" / "sub" / "a.jsonl")[0]["guardkit"]["severity"] == "unsafe"


def test_a_disk_that_is_full_is_told_and_what_was_judged_is_kept(
    tmp_path: Path, label: Label, records: list[dict[str, Any]]
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", records)
    args = [*PROGRAM, str(source), "--out", str(tmp_path / "out.jsonl")]

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    failed = subprocess.run(args, env=environment(), capture_output=True, text=True, preexec_fn=small_files, timeout=60)
    assert failed.returncode == 3
    assert "File too large" in failed.stderr
    assert "run it again" in failed.stderr
    assert not (tmp_path / "out.jsonl").exists()
    assert subprocess.run(args, env=environment(), capture_output=True, timeout=60).returncode == 0
    assert [r["id"] for r in read_jsonl(tmp_path / "out.jsonl")] == list(range(5000))
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_output_that_cannot_be_written_is_told(label: Label, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    (tmp_path / "file").write_text("no folder")
    done = label(source, "--out", tmp_path / "file" / "out.jsonl")
    assert done.code in (2, 3)
    assert "file" in done.err


def test_two_runs_on_one_output_do_not_mix(label: Label, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    from guardkit.labelling.store import Folder

    with Folder(tmp_path).locked("out.jsonl.guardkit/lock"):
        done = label(source, "--out", tmp_path / "out.jsonl")
    assert done.code == 3
    assert "another run is at work" in done.err


def test_the_manifest_says_what_labels_depend_on(label: Label, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    label(source, "--out", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / ".guardkit" / "manifest.json").read_bytes())
    assert manifest["judged_by"]["model"] == "nano"
    assert {"guardkit", "judged_by", "reading", "output", "versions", "sample"} <= set(manifest)
    kept = json.loads((tmp_path / "out" / ".guardkit" / "shards" / "in.jsonl" / "input.json").read_bytes())
    import hashlib

    assert kept["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()


def _split(tmp_path: Path, out: str, dropped: str) -> list[Any]:
    return [tmp_path / "in", "--out", tmp_path / out, "--where", "safe", "--dropped", tmp_path / dropped]


def test_dropped_rows_are_written_where_they_are_asked_for_later_or_got_lost(label: Label, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": "fine"}, {"text": "BAD"}])
    label(*_split(tmp_path, "out", "dropped")[:-2])
    side = tmp_path / "dropped" / "a.jsonl"
    for _ in range(2):
        assert label(*_split(tmp_path, "out", "dropped")).code == 0
        assert [row["text"] for row in read_jsonl(side)] == ["BAD"]
        side.unlink()
    assert label(*_split(tmp_path, "out", "elsewhere")).code == 0
    assert (tmp_path / "elsewhere" / "a.jsonl").exists()
    n_calls = label.calls
    assert label(*_split(tmp_path, "out", "elsewhere")).code == 0
    assert (n_calls, label.calls) == (0, 0), "labels that are known are not made again"


def test_dropped_rows_of_another_run_are_not_written_over(label: Label, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": "BAD first"}])
    assert label(*_split(tmp_path, "out", "dropped")).code == 0
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "BAD second"}\n')
    done = label(*_split(tmp_path, "out2", "dropped"))
    assert (done.code, "not of this run" in done.err) == (3, True)
    assert "BAD first" in (tmp_path / "dropped" / "a.jsonl").read_text()
    assert label(*_split(tmp_path, "out2", "dropped2")).code == 0


@pytest.mark.parametrize("dropped", ["in", "out", "link"])
def test_dropped_rows_go_over_no_input_and_no_output(label: Label, tmp_path: Path, dropped: str) -> None:
    source = write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": "fine"}, {"text": "BAD"}])
    before = source.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    done = label(*_split(tmp_path, "out", dropped))
    assert (done.code, "--dropped" in done.err) == (2, True)
    assert source.read_bytes() == before


def test_what_writers_that_were_killed_left_is_removed(label: Label, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": "fine"}, {"text": "BAD"}])
    shard = tmp_path / "out" / ".guardkit" / "shards" / "a.jsonl"
    left = [
        tmp_path / "out" / ".a.jsonl.123.tmp",
        tmp_path / "dropped" / ".a.jsonl.123.tmp",
        tmp_path / "out" / ".guardkit" / ".manifest.json.123.tmp",
        shard / ".input.json.123.tmp",
        shard / ".r0-000000000000-000000000002.labels.123.tmp",
    ]
    others = [tmp_path / "out" / ".mine.tmp", tmp_path / "dropped" / ".b.jsonl.123.tmp"]
    for path in left + others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    assert label(*_split(tmp_path, "out", "dropped")).code == 0
    assert [path.exists() for path in left] == [False] * len(left)
    assert all(path.exists() for path in others)


def test_damaged_labels_are_told(label: Label, tmp_path: Path, records: list[dict[str, Any]]) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", records[:200])
    label(source, "--out", tmp_path / "out")
    kept = tmp_path / "out" / ".guardkit" / "shards" / "in.jsonl" / "all.labels"
    whole = kept.read_bytes()
    for damaged in (whole[:40], whole[:30] + bytes(255 - byte for byte in whole[30:60]) + whole[60:], b"\0" * 9):
        kept.write_bytes(damaged)
        (tmp_path / "out" / "in.jsonl").unlink(missing_ok=True)
        done = label(source, "--out", tmp_path / "out")
        assert (done.code, "is damaged" in done.err) == (3, True)


def test_standard_output_is_no_place(label: Label, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    done = label(source, "--out", "-")
    assert (done.code, "--out -" in done.err) == (2, True)
    assert not Path("-").exists()


def test_a_shape_that_nobody_knows_is_no_reason_to_begin(label: Label, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    done = label(source, "--out", tmp_path / "out.jsonl", "--shape", "nope")
    assert (done.code, "nope" in done.err) == (2, True)
    assert label(source, "--out", tmp_path / "out.jsonl", "--shape", "text").code == 0
