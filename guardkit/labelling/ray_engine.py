"""The Ray engine: the rows of inputs in ranges, judged by a pool of actors of Ray Data, their labels kept in blocks.

What travels through Ray is only which rows to judge: an actor reads them itself, judges them and keeps their labels
under the rows' own numbers, so a range that is judged twice (its actor died, a node was lost) changes nothing, and a
job that ended goes on with the ranges that are missing. Inputs and outputs must be seen by all nodes: a shared folder,
or a store.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardkit.errors import LabelError, MissingExtra
from guardkit.labelling.jobs import Job, Place, Settings
from guardkit.labelling.judging import RateLimit
from guardkit.labelling.labeller import Labeller
from guardkit.labelling.labels import Tally
from guardkit.labelling.output import write_output
from guardkit.labelling.rows import Split
from guardkit.labelling.run import Run, is_as_written, naming
from guardkit.labelling.splits import SPLIT_ROWS, splits_of

CONNECT_S = 10.0
ATTEMPTS = 5  # of the whole pipeline, after Ray's own retries
Told = Callable[[Job, Tally], None]


@dataclass(frozen=True)
class RayOptions:
    """address: of a cluster; None starts one on this machine, or takes the one that is running. actors: least and most.
    cpus, gpus: that one actor takes; a share of a GPU lets several sit on one. rate: rows a second of all actors
    together, None for no limit. split_rows: of one piece of work."""

    address: str | None = None
    actors: tuple[int, int] = (1, 1)
    cpus: float = 1.0
    gpus: float = 0.0
    rate: float | None = None
    split_rows: int = SPLIT_ROWS


def ray_module() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtra("--engine ray", "ray") from error
    return ray


def check_reachable(address: str | None) -> None:
    """Raises `LabelError` for a cluster's address where nobody answers: Ray itself tries for minutes."""
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():  # none, "auto", "local"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise LabelError(f"Ray: the cluster at {address} did not answer: {error}") from error


class RayRun:
    """Labels inputs on a cluster. labeller: what judges, loaded in each actor. told: hears of each piece of work that
    is done; problem: of an input that could not be read (the others go on). Raises `LabelError` where there is no
    cluster."""

    def __init__(
        self,
        jobs: Sequence[Job],
        place: Place,
        labeller: Labeller,
        settings: Settings,
        options: RayOptions,
        *,
        dropped: Place | None = None,
        told: Told | None = None,
        problem: Callable[[Job, Exception], None] | None = None,
    ):
        self._ray = ray_module()
        self.jobs = {job.name: job for job in jobs}
        self.place, self.labeller, self.settings, self.options = place, labeller, settings, options
        self._dropped, self._told, self._problem = dropped, told, problem
        self.shares: dict[str, float] = {}
        """How much of each input is done, by its output's name."""
        if not self._ray.is_initialized():
            check_reachable(options.address)
            try:
                self._ray.init(address=options.address, log_to_driver=False, configure_logging=False)
            except Exception as error:  # no cluster at that address, a node that is not up in time
                where = f"the cluster at {options.address}" if options.address else "a cluster on this machine"
                raise LabelError(f"Ray: {where} did not answer: {error}") from error
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # what is done is told by `told`
        self._ray.data.DataContext.get_current().enable_progress_bars = False

    def judged_by(self, describe: Callable[[Labeller], Any]) -> Any:
        """What `describe` says of the labeller, where it is loaded as in an actor."""

        def asked(labeller: Labeller) -> Any:  # Ray takes plain functions alone, no methods
            return describe(labeller)

        task = self._ray.remote(num_cpus=self.options.cpus, num_gpus=self.options.gpus)(asked)
        return self._ray.get(task.remote(self.labeller))

    def run(self) -> Tally:
        """Label what is not labelled yet. What was found in all inputs, those that were done before included. Raises
        OSError where labels cannot be kept."""
        total = Tally()
        left: dict[str, dict[str, Any]] = {}
        items: list[dict[str, Any]] = []
        size = self.options.split_rows
        asked = {
            name: self._remote(_prepare, job, self._dropped, self.settings, size) for name, job in self.jobs.items()
        }
        for name, ref in asked.items():
            found = self._got(self.jobs[name], ref)
            if isinstance(found, Tally):
                total.update(found)
            elif found is not None:
                about, splits = found
                left[name] = about
                items += [{"job": name, "first": s.first, "stop": s.stop, "offset": s.offset} for s in splits]
        failed = self._judge(items)
        for name in failed:
            left.pop(name, None)
        if self.settings.retry_errors:
            for name in left:
                self.jobs[name].progress.reopen()
        written = {
            name: self._remote(_write, self.jobs[name], about, self.place, self._dropped, self.settings)
            for name, about in left.items()
        }
        for name, ref in written.items():
            found = self._got(self.jobs[name], ref)
            if isinstance(found, Tally):
                total.update(found)
        return total

    def _remote(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._ray.remote(num_cpus=1, max_retries=ATTEMPTS)(function).remote(*args)

    def _got(self, job: Job, ref: Any) -> Any:
        """What a task gave; None where it is about the input, of which `problem` hears."""
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, LabelError) and self._problem is not None:
                self._problem(job, cause)
                return None
            raise cause from error

    # -- judging

    def _judge(self, items: list[dict[str, Any]]) -> set[str]:
        """Have all pieces of work done. The names of the inputs that could not be read."""
        failed: set[str] = set()
        done: set[tuple[str, int]] = set()
        pieces = Counter(item["job"] for item in items)
        limit = None
        if self.options.rate is not None:
            limit = self._ray.remote(num_cpus=0)(RateLimit).remote(self.options.rate)
        for attempt in range(ATTEMPTS):
            left = [i for i in items if (i["job"], i["first"]) not in done and i["job"] not in failed]
            if not left:
                break
            try:
                for result in self._results(left, limit):
                    if result["kind"] == "disk":
                        raise OSError(result["errno"], result["error"], result["where"])
                    job = self.jobs[result["job"]]
                    if result["kind"] == "input":
                        if job.name not in failed and self._problem is not None:
                            self._problem(job, LabelError(result["error"]))
                        failed.add(job.name)
                        continue
                    done.add((job.name, result["first"]))
                    self.shares[job.name] = self.shares.get(job.name, 0.0) + 1 / pieces[job.name]
                    if self._told is not None:
                        self._told(job, Tally.of(result["tally"]))
            except self._ray.exceptions.RayError:
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(2.0**attempt)  # a node may come back
        return failed

    def _results(self, items: Sequence[dict[str, Any]], limit: Any) -> Iterator[Mapping[str, Any]]:
        """What became of each piece of work, as it is done."""
        import json

        data, options = self._ray.data, self.options
        least, most = options.actors
        pool = data.ActorPoolStrategy(min_size=least, max_size=max(least, most), max_tasks_in_flight_per_actor=2)
        # One piece of work a block, so that no actor holds what another could do.
        rows = data.from_items([{"work": json.dumps(i)} for i in items], override_num_blocks=len(items))
        spec = _Spec(self.jobs, self.place, self.labeller, self.settings, limit)
        results = rows.map_batches(
            _Worker,
            fn_constructor_kwargs={"spec": self._ray.put(spec)},
            batch_size=1,
            compute=pool,
            num_cpus=options.cpus,
            num_gpus=options.gpus or None,
        )
        for row in results.iter_rows():
            yield json.loads(row["result"])


# ------------------------------------------------------------------------------------------------- on the cluster


@dataclass(frozen=True)
class _Spec:
    jobs: Mapping[str, Job]
    place: Place
    labeller: Labeller
    settings: Settings
    limit: Any


class _Limit:
    """A rate that all actors keep together."""

    def __init__(self, actor: Any):
        self._actor = actor

    def wait(self, n: int) -> None:
        seconds = ray_module().get(self._actor.reserve.remote(n))
        if seconds > 0:
            time.sleep(seconds)


class _Worker:
    """One actor: judges ranges of rows."""

    def __init__(self, spec: Any):
        spec = ray_module().get(spec) if not isinstance(spec, _Spec) else spec
        self._spec: _Spec = spec
        judge = spec.labeller.judge
        if spec.limit is not None:
            judge.limit = _Limit(spec.limit)
        self._judge = judge

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        import json

        return {"result": [json.dumps(self._do(json.loads(str(work)))) for work in batch["work"]]}

    def _do(self, work: dict[str, Any]) -> dict[str, Any]:
        job = self._spec.jobs[work["job"]]
        tally = Tally()
        run = Run([job], self._spec.place, self._judge, self._spec.settings, told=lambda _, found: tally.update(found))
        about = {"job": job.name, "first": work["first"]}
        try:
            with naming(job.given), job.given.local() as path:
                split = Split(work["first"], work["stop"], work["offset"])
                run.judge_rows(job, path, split)
                if self._spec.settings.retry_errors:
                    run.retry_rows(job, path, split)
        except LabelError as error:
            return {**about, "kind": "input", "error": str(error)}
        except OSError as error:  # the output's; the input's are `LabelError`
            return {
                **about,
                "kind": "disk",
                "errno": error.errno,
                "error": error.strerror or str(error),
                "where": str(error.filename or self._spec.place.store),
            }
        return {**about, "kind": "done", "tally": tally.to_dict()}


def _prepare(
    job: Job, dropped: Place | None, settings: Settings, split_rows: int
) -> Tally | tuple[dict[str, Any], list[Split]]:
    """What there is to do for an input; what was found in it where it is done already."""
    done = job.progress.done
    if done is not None and not settings.retry_errors and is_as_written(job, done, dropped):
        return Tally.of(done["counts"])
    with naming(job.given), job.given.local() as path:
        about = job.given.about(path)
        job.progress.begin(about)
        splits = splits_of(job.given, path, settings.column, split_rows)
        if settings.retry_errors:
            return about, splits
        known = job.progress.ranges()
        return about, [s for s in splits if s.stop is None or not known.covers(s.first, s.stop)]


def _write(job: Job, about: dict[str, Any], place: Place, dropped: Place | None, settings: Settings) -> Tally:
    with naming(job.given), job.given.local() as path:
        return write_output(job, Path(path), about, place, dropped, settings)
