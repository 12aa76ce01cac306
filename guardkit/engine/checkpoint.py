"""A checkpoint folder: found or downloaded, opened, checked against what a model needs, and read into tensors.

Only config.json, the safetensors files and the chat template are read. Code in the folder, and config.json's
`auto_map` that points to it, are ignored: nothing from a checkpoint is ever run.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardkit.engine.config import Qwen3Config
from guardkit.errors import MissingExtra, ModelLoadError

if TYPE_CHECKING:
    import torch

ARCHITECTURES = {
    "Qwen3ForGuardModel": "Qwen3Guard-Stream",
    "Qwen3ForCausalLM": "Qwen3Guard-Gen",
}
"""The architectures that guardkit's engines run, and the published family of each."""

_FILES = [
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
]  # what is downloaded: neither code nor pickled weights
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PUBLISHED_SIZES = {1024: "0.6B", 2560: "4B", 4096: "8B"}  # by hidden_size
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # safetensors dtype -> bytes
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_MAX_PROBLEMS = 5
_AGAIN = "download the checkpoint again and compare the files' sizes with the published ones"
_CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; save_file({k: v.clone() for k, v in '
    "torch.load('pytorch_model.bin', weights_only=True).items()}, 'model.safetensors')\""
)


def locate(name: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint: `name` itself if it is one, else a snapshot of the hub id `name`.

    What is cached is used without asking the network whether there is something newer; `revision` (a commit, tag or
    branch) pins it. The hub is Hugging Face's; ModelScope's if GUARDKIT_HUB=modelscope, or where Hugging Face's cannot
    be reached, nothing is pinned and the modelscope package is installed. Raises `ModelLoadError`, `MissingExtra`.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ModelLoadError(f"{name}: a local folder has no revisions; leave out revision='{revision}'")
        return folder
    if not _HUB_ID.fullmatch(name):
        raise ModelLoadError(f"{name}: no such folder, and no hub id, such as Qwen/Qwen3Guard-Stream-0.6B")
    hub = os.environ.get("GUARDKIT_HUB") or "huggingface"
    if hub == "modelscope":
        return _from_modelscope(name, revision)
    if hub != "huggingface":
        raise ModelLoadError(f"GUARDKIT_HUB is '{hub}'; known: huggingface, modelscope")
    return _from_hugging_face(name, revision)


def _from_hugging_face(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise MissingExtra(name, "torch") from error
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_FILES, local_files_only=True))
        if _complete(folder):
            return folder
    except (OSError, ValueError):  # not cached
        pass
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except errors.GatedRepoError as error:
        why = "is given only to those who accepted its terms; accept them on its page, then run 'hf auth login'"
        raise ModelLoadError(f"{name}: {why}") from error
    except errors.RevisionNotFoundError as error:
        raise ModelLoadError(f"{name}: no revision '{revision}'; look it up on its page, or leave it out") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        why = "no such model on the hub, or a private one; check the name, or run 'hf auth login'"
        raise ModelLoadError(f"{name}: {why}") from error
    except Exception as error:  # clients differ in what they raise for a network that fails
        if revision is None and importlib.util.find_spec("modelscope"):
            return _from_modelscope(name, None)
        raise ModelLoadError(_unreachable(name, "Hugging Face Hub", error)) from error


def _from_modelscope(name: str, revision: str | None) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise ModelLoadError(f"{name}: GUARDKIT_HUB=modelscope needs a package: pip install modelscope") from error
    pinned = {} if revision is None else {"revision": revision}
    try:
        if revision is None:  # its cache does not tell revisions apart
            try:
                folder = Path(snapshot_download(name, allow_patterns=_FILES, local_files_only=True))
                if _complete(folder):
                    return folder
            except (OSError, ValueError):  # not cached
                pass
        if _offline():
            raise ConnectionError("HF_HUB_OFFLINE is set")
        return Path(snapshot_download(name, allow_patterns=_FILES, **pinned))
    except Exception as error:
        at = "" if revision is None else f" at revision '{revision}'"
        raise ModelLoadError(_unreachable(f"{name}{at}", "ModelScope", error)) from error


def _complete(folder: Path) -> bool:
    """Whether a cached snapshot has every file that loading needs; a download may have been interrupted."""
    if not all((folder / file).is_file() for file in ("config.json", "tokenizer.json")):
        return False
    try:
        return bool(_index(folder))
    except ModelLoadError:
        return False


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _unreachable(name: str, hub: str, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
    if _offline():
        reason = "HF_HUB_OFFLINE is set; unset it to download"
    mirror = ", set HF_ENDPOINT to a mirror, or GUARDKIT_HUB=modelscope (pip install modelscope)"
    other = "" if hub == "ModelScope" else mirror
    return (
        f"{name}: not cached, and not to be had from {hub} ({reason}). Check the name and the network, run "
        f"'hf download {name.split()[0]}' where there is one, name a local folder{other}"
    )


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a file's header describes it. dtype by safetensors' name, such as "BF16"; begin: where its bytes
    begin in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int


class Checkpoint:
    """An opened folder. `raw` is config.json as parsed, `tensors` what the weight files hold, by name.

    `unused`: after `load`, the names in `tensors` that were not asked for (`lm_head.weight` aside, which Stream
    checkpoints may carry along).
    """

    def __init__(self, folder: Path, raw: dict[str, Any], architecture: str, config: Qwen3Config):
        self.folder, self.raw, self.architecture, self.config = folder, raw, architecture, config
        self.tensors: Mapping[str, StoredTensor] = _index(folder)
        self.unused: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read config.json and the headers of all weight files; no weights yet. Raises `ModelLoadError`."""
        folder = Path(folder)
        source = folder / "config.json"
        if not source.is_file():
            inner = next(folder.glob("snapshots/*/config.json"), None)  # the outer folder of a hub's cache
            hint = f"name {inner.parent}" if inner else "name the folder that holds the checkpoint's files"
            raise ModelLoadError(f"{folder}: no config.json, so no checkpoint; {hint}")
        raw = _read_object(source)
        found = raw.get("architectures")
        architecture = found[0] if isinstance(found, list) and found else found
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
            known = ", ".join(f"{name} ({family})" for name, family in ARCHITECTURES.items())
            raise ModelLoadError(f"{source}: architecture {architecture!r} is not supported; known: {known}")
        return cls(folder, raw, architecture, Qwen3Config.from_json(raw, source))

    @property
    def source(self) -> Path:
        """The path of config.json, for messages."""
        return self.folder / "config.json"

    def require(self, architecture: str) -> None:
        """Raise `ModelLoadError` if this is the other kind of guard model."""
        if self.architecture != architecture:
            wanted = ARCHITECTURES[architecture]
            size = _PUBLISHED_SIZES.get(self.config.hidden_size, "0.6B")
            raise ModelLoadError(
                f"{self.source}: this is a {ARCHITECTURES[self.architecture]} checkpoint ({self.architecture}), not "
                f"{wanted} ({architecture}); load Qwen/{wanted}-{size}, or a folder that holds it, instead"
            )

    def chat_template(self) -> str:
        """The Jinja source of the checkpoint's chat template. Raises `ModelLoadError`."""
        file = self.folder / "chat_template.jinja"
        if file.is_file():
            return _read_text(file)
        file = self.folder / "tokenizer_config.json"
        template = _read_object(file).get("chat_template") if file.is_file() else None
        if isinstance(template, list):  # several templates by name
            named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            if "default" not in named:
                raise ModelLoadError(f"{file}: chat_template has no entry named 'default'; {_AGAIN}")
            template = named["default"]
        if template is None:
            raise ModelLoadError(f"{self.folder}: no chat template (chat_template.jinja, or tokenizer_config.json)")
        if not isinstance(template, str):
            raise ModelLoadError(f"{file}: chat_template is a {type(template).__name__}, not a text; {_AGAIN}")
        return template

    def load(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        optional: Collection[str] = (),
        check_finite: bool = True,
    ) -> dict[str, torch.Tensor]:
        """Read the tensors named in `shapes` onto `device` as `dtype`, one after another.

        Names, shapes and dtypes are all checked before any data is read; names in `optional` may be missing.
        check_finite: refuse NaN and infinite weights, which would make every verdict noise. Raises `ModelLoadError`.
        """
        self.check(shapes, optional)
        present = {name: self.tensors[name] for name in shapes if name in self.tensors}
        self.unused = tuple(sorted(self.tensors.keys() - present.keys() - {"lm_head.weight"}))
        loaded: dict[str, torch.Tensor] = {}
        for file, names in _by_file(present):
            for name, tensor in _read_tensors(file, names):
                try:
                    loaded[name] = tensor.to(device=device, dtype=dtype, copy=True)
                except (RuntimeError, AssertionError) as error:  # no such device; out of memory
                    raise ModelLoadError(
                        f"{file}: {name} cannot be put on device '{device}' as {dtype} ({error}); choose another "
                        "device, a smaller dtype such as bfloat16, or a smaller model"
                    ) from error
                if check_finite and not _finite(loaded[name]):
                    if _finite(tensor):
                        raise ModelLoadError(f"{file}: {name} does not fit into {dtype}; use bfloat16 or float32")
                    raise ModelLoadError(f"{file}: {name} holds values that are not finite; {_AGAIN}")
        return loaded

    def check(self, shapes: Mapping[str, tuple[int, ...]], optional: Collection[str] = ()) -> None:
        """Whether the tensors are there with these shapes, in a dtype that is read. Raises `ModelLoadError`."""
        problems = []
        for name, shape in shapes.items():
            found = self.tensors.get(name)
            if found is None:
                if name not in optional:
                    problems.append(f"{name} is missing")
            elif found.shape != tuple(shape):
                problems.append(f"{name}: expected {list(shape)}, found {list(found.shape)} in {found.file.name}")
            elif found.dtype not in _FLOATS:
                problems.append(
                    f"{name}: {found.dtype} in {found.file.name}, where guardkit reads {', '.join(_FLOATS)}"
                )
        if problems:
            more = [f"and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
            files = ", ".join(sorted({t.file.name for t in self.tensors.values()}))
            raise ModelLoadError(
                f"{self.folder}: the weights ({files}) do not fit config.json: "
                f"{'; '.join(problems[:_MAX_PROBLEMS] + more)}. Make sure that both come from one download of an "
                f"unquantised {ARCHITECTURES[self.architecture]} checkpoint"
            )


def _index(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of the folder: of model.safetensors, else of the shards an index names, else of all files."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return _header(single)
    if index.is_file():
        return _shards(index)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = sorted(f.name for f in folder.iterdir() if f.suffix in (".bin", ".pt", ".pth", ".gguf"))
        if others:
            raise ModelLoadError(
                f"{folder}: guardkit reads safetensors only, and the weights here are {', '.join(others)}; download "
                f"the safetensors files, or convert a .bin file in its folder: {_CONVERT}"
            )
        raise ModelLoadError(f"{folder}: no *.safetensors file, so no weights; {_AGAIN}")
    found: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in _header(file).items():
            if name in found:
                raise ModelLoadError(
                    f"{folder}: {name} is both in {found[name].file.name} and in {file.name}, and no "
                    f"{index.name} says which counts; remove the file that does not belong here"
                )
            found[name] = tensor
    return found


def _shards(index: Path) -> dict[str, StoredTensor]:
    weight_map = _read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{index}: no weight_map from tensors to files; {_AGAIN}")
    headers: dict[str, dict[str, StoredTensor]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelLoadError(f"{index}: {name} is in {shard!r}, which is no *.safetensors file of this folder")
        if shard not in headers:
            if not (index.parent / shard).is_file():
                raise ModelLoadError(f"{index.parent / shard}: missing, though {index.name} names it; {_AGAIN}")
            headers[shard] = _header(index.parent / shard)
        if name not in headers[shard]:
            raise ModelLoadError(f"{index.parent / shard}: no {name}, though {index.name} says so; {_AGAIN}")
    return {name: headers[shard][name] for name, shard in weight_map.items()}


def _header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, whose length must be what its header says."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(8)
            if start.startswith(b"version "):  # "version https://git-lfs..."
                raise ModelLoadError(f"{file}: a Git LFS pointer, not the weights; run 'git lfs pull' in the folder")
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER_BYTES
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise ModelLoadError(f"{file}: no safetensors file, or cut off ({size:,} bytes); {_AGAIN}")
            header = json.loads(opened.read(length))
        tensors, end = {}, 0
        for name, entry in header.items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                shape = tuple(int(n) for n in entry["shape"])
                tensors[name] = StoredTensor(file, str(entry["dtype"]), shape, 8 + length + int(first))
                item = _FLOATS.get(entry["dtype"])  # other dtypes are refused where they are asked for
                if item and last - first != math.prod(tensors[name].shape) * item:
                    raise ValueError(f"{name} has {last - first:,} bytes, not what its shape takes")
                end = max(end, last)
    except OSError as error:
        raise ModelLoadError(f"{file}: cannot be read ({error.strerror or error}); check the file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{file}: damaged safetensors header ({error!r}); {_AGAIN}") from error
    if size != 8 + length + end:
        raise ModelLoadError(f"{file}: {size:,} bytes where its header asks for {8 + length + end:,}; {_AGAIN}")
    return tensors


def _by_file(tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[Path, list[str]]]:
    files: dict[Path, list[str]] = {}
    for name, tensor in tensors.items():
        files.setdefault(tensor.file, []).append(name)
    yield from files.items()


def _read_tensors(file: Path, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtra(f"reading {file.name}", "torch") from error
    try:
        with safe_open(str(file), framework="pt", device="cpu") as opened:
            for name in names:
                yield name, opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{file}: cannot be read ({error}); {_AGAIN}") from error


def _finite(tensor: torch.Tensor) -> bool:
    """Both extremes are finite: NaN wins any comparison here, and no mask of the tensor's size is made."""
    low, high = tensor.aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{file}: cannot be read as text ({error}); {_AGAIN}") from error


def _read_object(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{file}: not valid JSON ({error}); {_AGAIN}") from error
    if not isinstance(data, dict):
        raise ModelLoadError(f"{file}: a JSON object is needed, not a {type(data).__name__}; {_AGAIN}")
    return data
