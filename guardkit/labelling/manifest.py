"""What labels depend on, kept beside them: a run goes on only with the same, and says what differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from guardkit._version import __version__
from guardkit.errors import LabelError
from guardkit.guard import Guard
from guardkit.labelling.jobs import Settings
from guardkit.labelling.store import Store

NAME = "manifest.json"
_PACKAGES = ("numpy", "onnxruntime", "torch", "pyarrow", "datasets", "ray")


def versions() -> dict[str, str]:
    """Of what took part. Told, not compared: guardkit's own version is."""
    import platform
    from importlib import metadata

    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def settings_of(guards: Sequence[Mapping[str, Any]], settings: Settings, stage: str | None) -> dict[str, Any]:
    """What the labels and outputs of a run depend on, besides the inputs. guards: of `guard_settings`."""
    reading = settings.reading
    return {
        "judged_by": guards[0],
        "votes": list(guards[1:]),
        "reading": {"field": reading.field, "shape": reading.shape, "judge": reading.which, "stage": stage},
        "sample": None if settings.sample is None else {"rows": str(settings.sample), "seed": settings.sample.seed},
        "output": {
            "format": settings.format,
            "column": settings.column,
            "where": settings.where.text if settings.where else None,
        },
    }


def guard_settings(guard: Guard, name: str, revision: str | None) -> dict[str, Any]:
    """A guard, by all that its verdicts depend on."""
    from guardkit.evaluation.runner import model_revision, runs_on, shown_name

    name = shown_name(name)
    found: dict[str, Any] = {
        "model": name,
        "revision": model_revision(guard, name, revision),
        "on": runs_on(guard.model),
        "policy": guard.policy.to_dict(),
        "debounce": guard.debounce,
        "normalize": guard.normalize,
    }
    if guard.then is not None:
        found |= {
            "then": guard.then.name,
            "then_revision": revision,
            "then_on": runs_on(guard.then),
            "when": list(guard.when),
        }
    return found


def agree(store: Store, folder: str, settings: Mapping[str, Any]) -> None:
    """Keep `settings` in the store, or hold them against those that are there. Raises `LabelError` that names each
    difference."""
    name = f"{folder}/{NAME}"
    store.tidy(name)
    wanted = json.loads(json.dumps({"guardkit": __version__, **settings}))
    data = store.read(name)
    if data is None:
        store.write(name, json.dumps(wanted | {"versions": versions()}, indent=1, sort_keys=True).encode() + b"\n")
        return
    try:
        known = json.loads(data)
    except ValueError as error:
        raise LabelError(f"{store}/{name} is damaged: {error}") from None
    known.pop("versions", None)
    differ = list(_differences("", known, wanted))
    if differ:
        raise LabelError(
            f"labels in {store} were begun with other settings: {'; '.join(differ)}. Take another --out, or remove "
            f"{store}/{folder} to begin anew"
        )


def _differences(at: str, known: Any, wanted: Any) -> Iterator[str]:
    if isinstance(known, Mapping) and isinstance(wanted, Mapping):
        for key in sorted({*known, *wanted}):
            yield from _differences(f"{at}.{key}".lstrip("."), known.get(key), wanted.get(key))
    elif known != wanted:
        yield f"{at} was {_shown(known)} and is {_shown(wanted)}"


def _shown(value: Any) -> str:
    text = "not set" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:79] + "…"
