"""Where outputs and progress are kept: a folder here, or a prefix in a store that fsspec knows.

A file is there whole or not at all. Names are relative, with "/" between folders.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from guardkit.errors import LabelError, MissingExtra


class Store(ABC):
    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """A file's bytes; None where there is no such file."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Put a small file there."""

    @abstractmethod
    def writing(self, name: str) -> Any:
        """A context with a path to write a large file to, which is there when the context ends without an error."""

    @abstractmethod
    def opened(self, name: str) -> IO[bytes]: ...

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder, without it; sorted."""

    @abstractmethod
    def remove(self, name: str) -> None: ...

    def tidy(self, name: str) -> None:
        """Remove what writers of this file that were killed have left; of all files of a folder by ``folder/*``."""
        return

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """For one run at a time, where the store can tell; `LabelError` where another is at work."""
        yield


class Folder(Store):
    """A folder of this machine."""

    def __init__(self, root: Path):
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def _path(self, name: str) -> Path:
        return self.root / name

    def read(self, name: str) -> bytes | None:
        try:
            return self._path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        with self.writing(name) as path, path.open("wb") as file:
            file.write(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{_short(path.name)}.{os.getpid()}.tmp")
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError:  # some file systems have no such thing
            pass
        finally:
            os.close(folder)

    def opened(self, name: str) -> IO[bytes]:
        return self._path(name).open("rb")

    def size(self, name: str) -> int | None:
        try:
            return self._path(name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(p.name for p in self._path(folder).iterdir() if p.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def tidy(self, name: str) -> None:
        path = self._path(name)
        of = ".+" if path.name == "*" else re.escape(_short(path.name))
        if path.parent.is_dir():
            for left in path.parent.iterdir():
                if re.fullmatch(rf"\.{of}\.\d+\.tmp", left.name):
                    left.unlink(missing_ok=True)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LabelError(f"another run is at work on {self.root}: wait for it, or take another --out") from None
            yield


def _short(name: str) -> str:
    """A name, so short that more fits beside it into the 255 bytes that file systems take."""
    raw = os.fsencode(name)
    return name if len(raw) <= 200 else hashlib.sha256(raw).hexdigest()


class Bucket(Store):
    """A prefix in a store of fsspec: S3, Google Cloud Storage, Azure, memory, SSH and so on. An object is put there
    under its name in one piece; on what is no object store under another name first."""

    _OBJECTS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "r2", "oss", "hf", "memory")

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._fs, root = filesystem(self.url)
        self._root = root.rstrip("/")
        protocols = (self._fs.protocol,) if isinstance(self._fs.protocol, str) else self._fs.protocol
        self._is_atomic = any(p in self._OBJECTS for p in protocols)

    def __str__(self) -> str:
        return self.url

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def read(self, name: str) -> bytes | None:
        try:
            return bytes(self._fs.cat_file(self._path(name)))
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        self._put(name, lambda path: self._fs.pipe_file(path, data))

    def _put(self, name: str, put: Any) -> None:
        path = self._path(name)
        if self._is_atomic:
            put(path)
            return
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        head, _, last = path.rpartition("/")
        temporary = f"{head}/.{last}.tmp"
        put(temporary)
        self._fs.mv(temporary, path)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="guardkit-") as folder:
            path = Path(folder) / PurePosixPath(name).name
            yield path
            self._put(name, lambda target: self._fs.put_file(str(path), target))

    def opened(self, name: str) -> IO[bytes]:
        return self._fs.open(self._path(name), "rb")  # type: ignore[no-any-return]

    def size(self, name: str) -> int | None:
        self._fs.invalidate_cache()
        try:
            return int(self._fs.size(self._path(name)))
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return []
        return sorted(str(e["name"]).rpartition("/")[2] for e in found if e["type"] == "file")

    def remove(self, name: str) -> None:
        try:
            self._fs.rm_file(self._path(name))
        except FileNotFoundError:
            pass


def is_url(path: str) -> bool:
    return "://" in path


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises `LabelError` where the store's own package is missing."""
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtra(url, "label") from error
    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:  # "Install s3fs to access S3", an unknown protocol
        raise LabelError(f"{url}: {error}") from error


def store_at(place: str) -> Store:
    """The store at a folder or URL. Raises `LabelError`."""
    if place.startswith("file://"):
        place = place.removeprefix("file://")
    return Bucket(place) if is_url(place) else Folder(Path(place))


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """A file of a store as a file of this machine: read once, and what changes there meanwhile does not matter."""
    fs, path = filesystem(url)
    with tempfile.TemporaryDirectory(prefix="guardkit-") as folder:
        local = Path(folder) / (PurePosixPath(path).name or "input")
        with fs.open(path, "rb") as source, local.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        yield local
