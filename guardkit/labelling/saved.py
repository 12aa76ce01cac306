"""Folders that `datasets` saved: the files beside the data, so that `load_from_disk` reads an output too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardkit.errors import LabelError, MissingExtra
from guardkit.labelling.jobs import Job, Place


def describe(saved: Sequence[tuple[Path, str]], jobs: Sequence[Job], place: Place) -> None:
    """Write what `load_from_disk` looks for beside the outputs of the folders in `saved`, those whose data are all
    written as Arrow."""
    done = {job.name: found for job in jobs if job.format == "arrow" and (found := job.progress.done) is not None}
    for folder, below in saved:
        if (folder / "dataset_dict.json").is_file():
            place.store.write(f"{below}dataset_dict.json", (folder / "dataset_dict.json").read_bytes())
            continue
        state = json.loads((folder / "state.json").read_bytes())
        names = [entry["filename"] for entry in state["_data_files"]]
        if not all(below + name in done for name in names):
            continue
        hashes = "".join(done[below + name]["output"]["sha256"] for name in names)
        state["_fingerprint"] = hashlib.sha256(hashes.encode()).hexdigest()[:16]
        info = json.loads((folder / "dataset_info.json").read_bytes())
        info["features"] = _features(place, below + names[0])
        kept = ("builder_name", "citation", "config_name", "dataset_name", "description", "features", "homepage")
        info = {key: value for key, value in info.items() if key in (*kept, "license", "version")}
        place.store.write(f"{below}state.json", json.dumps(state, indent=2, sort_keys=True).encode())
        place.store.write(f"{below}dataset_info.json", json.dumps(info, indent=2, sort_keys=True).encode())


def _features(place: Place, name: str) -> Any:
    try:
        import datasets
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtra("a folder that `datasets` saved", "label") from error
    with place.store.opened(name) as file:
        try:
            schema = pa.ipc.open_stream(file).schema
        except pa.ArrowInvalid as error:
            raise LabelError(f"{place.store}/{name}: cannot be read: {error}") from error
    return datasets.Features.from_arrow_schema(schema).to_dict()
