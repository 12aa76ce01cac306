"""What is labelled: files, folders, patterns, stores and data sets, each with the name that its output gets."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

from guardkit.errors import LabelError
from guardkit.labelling.csv_rows import csv_units
from guardkit.labelling.lines import json_units, value_units
from guardkit.labelling.packed import COMPRESSED
from guardkit.labelling.rows import FORMATS, WHOLE, Format, Split, Unit
from guardkit.labelling.store import filesystem, is_url, local_copy

ENDINGS: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".txt": "text", ".csv": "csv", ".tsv": "tsv",
    ".tab": "tsv", ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
HUB = "hub:"
KEPT = ".guardkit"  # the folder beside outputs where progress is kept
_HF = ("state.json", "dataset_info.json", "dataset_dict.json")


@dataclass(frozen=True)
class Input:
    """One input. path: as it was found: a path, a URL, or ``hub:NAME``. name: where it stands below what was given,
    with "/" between folders. compression: of its name, which the output's takes over. dataset, identity: the rows of a
    hub's split, and what tells them apart from others."""

    path: str
    name: str
    format: Format
    compression: str | None = None
    dataset: Any = field(default=None, compare=False)
    identity: str = ""

    @contextmanager
    def local(self) -> Iterator[Path]:
        """As a file of this machine."""
        if self.dataset is not None:
            yield Path(self.path)
        elif is_url(self.path):
            with local_copy(self.path) as path:
                yield path
        else:
            yield Path(self.path)

    @property
    def is_remote(self) -> bool:
        return is_url(self.path)

    def units(
        self, path: Path, column: str, *, judged: bool = False, field: str | None = None, start: Split | None = None
    ) -> Iterator[Unit]:
        """Its rows. column: where labels will go. judged: only what may hold text is needed, of `field` alone. start:
        where to begin, for formats that can (others begin at the first row)."""
        if self.format in ("jsonl", "text"):
            yield from json_units(path, column, self.format == "text", start or WHOLE)
        elif self.format == "json":
            yield from value_units(path, column)
        elif self.format in ("csv", "tsv"):
            yield from csv_units(path, "\t" if self.format == "tsv" else None, column)
        else:
            from guardkit.labelling.tables import table_units

            yield from table_units(self, path, column, field if judged else None, judged, start or WHOLE)

    def about(self, path: Path) -> dict[str, Any]:
        """What it is, to know it again: place, size and SHA-256."""
        if self.dataset is not None:
            digest = hashlib.sha256(self.identity.encode()).hexdigest()
            return {"path": self.path, "size": int(self.dataset.num_rows), "sha256": digest}
        return {"path": self.path, "size": path.stat().st_size, "sha256": sha256_of(path)}


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class Found:
    """inputs: in the order they were given, those of a folder by name. others: files of folders that are no data.
    saved: folders that `datasets` saved, as they stand below the output. outputs: what the run itself writes."""

    inputs: list[Input] = field(default_factory=list)
    others: int = 0
    saved: list[tuple[Path, str]] = field(default_factory=list)
    outputs: Sequence[str] = ()

    def is_output(self, path: str, given: str) -> bool:
        """Whether a path in the folder `given` is where the run writes to, or lies there."""
        at = _resolved(path)
        return any(
            at.is_relative_to(out) and not _resolved(given).is_relative_to(out) for out in map(_resolved, self.outputs)
        )


def _resolved(path: str) -> PurePosixPath:
    return PurePosixPath(path if is_url(path) else os.path.realpath(path.removeprefix("file://")))


def find(
    given: Sequence[str],
    *,
    outputs: Sequence[str] = (),
    form: Format | None = None,
    revision: str | None = None,
    config: str | None = None,
    split: str | None = None,
) -> Found:
    """The inputs that `given` stands for. outputs: files and folders that the run writes to, which are no inputs where
    they lie in a folder that is. form: of all files, instead of finding it out. revision, config, split: of a hub's
    data set. Raises `LabelError` for what does not exist or has no known format."""
    found = Found(outputs=outputs)
    for one in given:
        before = len(found.inputs)
        if one.startswith(HUB) or _is_hub_name(one):
            found.inputs += _of_hub(one.removeprefix(HUB), revision, config, split)
        elif is_url(one) and not one.startswith("file://"):
            _remote(one, form, found)
        else:
            _local(one.removeprefix("file://"), form, found)
        if len(found.inputs) == before:
            known = ", ".join(ENDINGS)
            raise LabelError(f"{one}: no file to label in it (known: {known}; --input-format says it of others)")
    found.inputs = _named_apart(found.inputs)
    return found


def _named_apart(inputs: list[Input]) -> list[Input]:
    """The same file twice is an error; equal names of different files get the folders above them."""
    paths = [i.path for i in inputs]
    twice = next((p for n, p in enumerate(paths) if p in paths[:n]), None) if len(set(paths)) < len(paths) else None
    if twice is not None:
        raise LabelError(f"{twice} is given twice")
    if len({i.name for i in inputs}) == len(inputs):
        return inputs
    full = [i.path if is_url(i.path) else os.path.abspath(i.path) for i in inputs]
    shared = os.path.commonpath([p.partition("://")[2] if is_url(p) else p for p in full])
    return [
        replace(i, name=p.partition("://")[2] if is_url(p) else os.path.relpath(p, shared))
        for i, p in zip(inputs, full, strict=True)
    ]


def _is_hub_name(name: str) -> bool:
    """Whether a name that is no file can be a hub's: ORGANISATION/NAME."""
    parts = name.split("/")
    plain = all(part and part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in parts)
    return len(parts) == 2 and plain and format_of(name)[0] is None and not os.path.exists(name)


def format_of(name: str) -> tuple[Format | None, str | None]:
    """The format and the compression that a file's name tells."""
    name = name.lower()
    ending = next((e for e in COMPRESSED if name.endswith(e)), "")
    kind = next((f for e, f in ENDINGS.items() if name.removesuffix(ending).endswith(e)), None)
    if kind in ("parquet", "arrow") and ending:
        return None, None
    return kind, ending or None


def _input(path: str, name: str, form: Format | None) -> Input | None:
    kind, compression = format_of(name)
    kind = form or kind
    return None if kind is None else Input(path, name, kind, compression)


# ------------------------------------------------------------------------------------------------------- this machine


def _local(path: str, form: Format | None, found: Found) -> None:
    if os.path.isdir(path):
        _folder(Path(path), "", form, found)
    elif path == "-" or (os.path.exists(path) and not os.path.isfile(path)):
        raise LabelError(f"{path}: not a file; what is labelled is read twice, so write a stream to a file first")
    elif os.path.exists(path):
        name = os.path.basename(path)
        known = _input(path, name, form) or Input(path, name, _sniffed(path), format_of(name)[1])
        found.inputs.append(known)
    elif glob.has_magic(path):
        base = _fixed(path)
        for match in sorted(glob.glob(path, recursive=True)):
            if os.path.isfile(match) and not found.is_output(match, base or "."):
                _add(match, os.path.relpath(match, base or "."), form, found)
    else:
        raise LabelError(f"{path}: there is no such file, folder or pattern; a hub's data set is hub:ORGANISATION/NAME")


def _fixed(pattern: str) -> str:
    """The folders of a pattern before the first one with a wildcard."""
    head: list[str] = []
    for part in pattern.split("/")[:-1]:
        if glob.has_magic(part):
            break
        head.append(part)
    return "/".join(head) or ("/" if pattern.startswith("/") else "")


def _add(path: str, name: str, form: Format | None, found: Found) -> None:
    known = _input(path, name.replace(os.sep, "/"), form)
    if known is None:
        found.others += 1
    else:
        found.inputs.append(known)


def _folder(folder: Path, below: str, form: Format | None, found: Found, above: tuple[Path, ...] = ()) -> None:
    """The files in a folder and in its folders, by name; hidden ones are left out. Of one that `datasets` saved, the
    files that its state names. above: the folders that it is in, since a link may lead back to one."""
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        found.saved.append((folder, below))
        for entry in json.loads((folder / "state.json").read_bytes())["_data_files"]:
            _add(str(folder / entry["filename"]), f"{below}{entry['filename']}", "arrow", found)
        return
    if (folder / "dataset_dict.json").is_file():
        found.saved.append((folder, below))
    above = (*above, folder.resolve())
    top = above[0]
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or (path.name in _HF and (folder / "dataset_dict.json").is_file()):
            continue
        if found.is_output(str(path), str(top)):
            continue
        if path.is_dir():
            if path.resolve() not in above:
                _folder(path, f"{below}{path.name}/", form, found, above)
        elif path.is_file() or not path.exists():  # a link to nothing is an input that cannot be read
            _add(str(path), f"{below}{path.name}", form, found)
        else:  # a pipe, a device, or a link to one: it may have no end
            found.others += 1


def _sniffed(path: str) -> Format:
    """The format of a file whose name does not tell it."""
    with open(path, "rb") as file:
        head = file.read(4096)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "arrow"
    if head.lstrip().startswith(b"{"):
        return "jsonl"
    raise LabelError(f"{path}: its name does not tell its format: --input-format {'|'.join(FORMATS)}")


# ------------------------------------------------------------------------------------------------------ stores, hubs


def _remote(url: str, form: Format | None, found: Found) -> None:
    fs, path = filesystem(url)
    scheme = url.partition("://")[0]
    inside = "".join(url.partition("::")[1:])  # of an archive: zip://data.jsonl::archive.zip
    if glob.has_magic(path) and not fs.exists(path):
        base, matches = _fixed(path), sorted(cast(list[str], fs.glob(path)))
    elif fs.isdir(path):
        base, matches = path.rstrip("/"), sorted(cast(list[str], fs.find(path)))
    elif fs.exists(path):
        base, matches = path.rpartition("/")[0], [path]
    else:
        raise LabelError(f"{url}: there is no such file or folder")
    for match in matches:
        name = match[len(base) :].lstrip("/")
        full = f"{scheme}://{match.lstrip('/') if scheme != 'file' else match}{inside}"
        is_hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)
        if not is_hidden and not found.is_output(full, full.removesuffix(inside).removesuffix(name)):
            _add(full, name, form, found)


def _of_hub(name: str, revision: str | None, config: str | None, split: str | None) -> list[Input]:
    """The splits of a data set by the `datasets` library, at one commit."""
    from guardkit.errors import MissingExtra

    try:
        import datasets
    except ImportError as error:
        raise MissingExtra(f"the data set '{name}'", "label") from error
    commit = revision or "main"
    if not os.path.exists(name):
        try:
            from huggingface_hub import HfApi

            commit = str(HfApi().dataset_info(name, revision=revision).sha or commit)
        except Exception:  # offline: what the library has in its cache may do
            pass
    try:
        loaded = datasets.load_dataset(name, config, split=split, revision=None if os.path.exists(name) else commit)
    except Exception as error:  # the library raises many kinds, its own and its HTTP client's
        raise LabelError(f"the data set '{name}' did not load: {type(error).__name__}: {error}") from error
    splits = {split: loaded} if split is not None else dict(loaded)
    base = name.rstrip("/").rpartition("/")[2]
    return [
        Input(
            f"{HUB}{name}:{key}",
            f"{base}/{key}.parquet",
            "parquet",
            dataset=rows,
            identity=f"{name}@{commit}/{config}/{key}/{rows.num_rows}/{rows.features}",
        )
        for key, rows in splits.items()
    ]
