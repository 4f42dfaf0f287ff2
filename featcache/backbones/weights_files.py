"""What lies in a weights file: read by its content, whatever its name, and nothing in it is ever executed.

safetensors, and an index of shards     the safetensors library
torch.save's archive, and its old form  torch.load(weights_only=True), mapped into memory where the form allows it
anything else                           WeightsError that names what it is
"""

from __future__ import annotations

import json
import pickle
import pickletools
import re
import stat
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING, Any

from featcache.backbones.foreign_files import archive_kind, foreign, listed, plain
from featcache.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

_HEAD = 4096
_LARGEST_INDEX = 64 << 20
_LONGEST_HEADER = 100_000_000
# The first of the pickles in torch's old files: a magic number.
_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# Old files of torch.save hold four pickles; the objects are in the fourth.
_OLD_PICKLES = 4
# Plain records that training scripts store beside tensors. What other functions would return is not guessed.
_RECORDS = ("numpy.", "collections.", "datetime.", "pathlib.")
_PLAIN_TYPES = tuple(f"builtins.{kind.__name__}" for kind in (bool, int, float, complex, str, bytes, tuple, list, dict))
# Classes of mappings: pickle fills their entries in, which torch allows for its own kinds of mapping only.
_MAPPINGS = ("dict", "Dict", "CfgNode")
# What torch.save writes for tensors themselves.
_OF_TENSORS = re.compile(
    r"torch\.(\w+|(_utils|_tensor|storage|serialization|nn\.parameter)\..+)$|collections\.OrderedDict$"
)
_STATE_DICT_HINT = "save it with torch.save(network.state_dict(), PATH), or as safetensors"
# torch keeps the classes that it may build in one list for the whole process.
_STAND_INS = Lock()


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightsFile:
    """What was read.

    `content`: tensors by name, or whatever torch.save was given, on the CPU. `metadata`: of safetensors. `classes`:
    what the file asks for besides tensors (`argparse.Namespace`); a `StandIn` lies where their objects would be.
    """

    content: object
    metadata: Mapping[str, str]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class StandIn:
    """Lies where an object of a foreign class would be: it keeps nothing and runs nothing."""

    def __new__(cls, *_: object, **__: object) -> StandIn:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """The object's content is left out."""


class MappingStandIn(StandIn):
    """Lies where a foreign mapping would be, as a mapping of plain Python with the same entries."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return OrderedDict()


def read_weights_file(path: Path) -> WeightsFile:
    """The content of a weights file, or of all shards that an index lists.

    Tensors may be mapped into memory: the file must stay as it is while they are used.

    Args:
        path: a file; its name decides nothing.

    Returns:
        Tensors on the CPU, with dtypes and shapes as stored.

    Raises:
        WeightsError: there is no such file, it cannot be opened now, or it holds no weights; the message names what
            it holds.
    """
    size, head = _opened(path)
    if not _is_safetensors(head) and head.lstrip().startswith(b"{") and (index := _index(path, size)) is not None:
        return _from_shards(path, index)
    return _from_one_file(path, size, head)


def _opened(path: Path) -> tuple[int, bytes]:
    with _open_now(path):
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise _folder(path)
        if not stat.S_ISREG(status.st_mode):
            raise WeightsError(f"expected a weights file, got {path}, which is a pipe or a device")
        with path.open("rb") as file:
            return status.st_size, file.read(_HEAD)


@contextmanager
def _open_now(path: Path) -> Iterator[None]:
    """What the system refuses is no fault of the file."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsError(f"there is no weights file at {path}") from error
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be opened now: {plain(error.strerror or type(error).__name__)}",
            hint="check who may read it and that its disk is there, then run again; the file may well be sound",
        ) from error


def _folder(path: Path) -> WeightsError:
    kinds = (".safetensors", ".safetensors.index.json", ".pth", ".pt", ".bin", ".ckpt", ".tar")
    inside = sorted(entry.name for entry in path.iterdir() if entry.name.endswith(kinds))
    offer = f"give one of its files: {listed(inside)}" if inside else "no file in it has the name of a weights file"
    return WeightsError(f"expected a weights file, got the folder {path}", hint=offer)


def _from_one_file(path: Path, size: int, head: bytes) -> WeightsFile:
    if _is_safetensors(head):
        return _from_safetensors(path, size)
    if head.startswith(b"PK\x03\x04"):
        return _from_archive(path)
    if head.startswith(_TORCH_MAGIC):
        return _from_torch(path, mmap=False)
    raise foreign(path, size, head)


def _is_safetensors(head: bytes) -> bool:
    # Eight bytes of the header's length, which the format limits, then JSON.
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER


# --- safetensors -------------------------------------------------------------------------------------------


def _from_safetensors(path: Path, size: int) -> WeightsFile:
    from safetensors import SafetensorError, safe_open

    with _open_now(path):
        _refuse_cut_short(path, size)
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return WeightsFile(content=tensors, metadata=dict(file.metadata() or {}))
        except SafetensorError as error:
            raise WeightsError(f"{path} is a damaged safetensors file: {plain(str(error))}") from error


def _refuse_cut_short(path: Path, size: int) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
    try:
        entries = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        expected = 8 + length + max((int(entry["data_offsets"][1]) for entry in entries), default=0)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        # The library says what is wrong with a header that is there.
        expected = 8 + length
    if size < expected:
        raise WeightsError(
            f"{path} is cut short: expected at least {expected:,} bytes, got {size:,}", hint="download or copy it again"
        )


# --- shards ------------------------------------------------------------------------------------------------


def _index(path: Path, size: int) -> Mapping[str, str] | None:
    """Names of tensors -> shards beside `path`; None for any other JSON."""
    if size > _LARGEST_INDEX:
        return None
    with _open_now(path):
        content = path.read_bytes()
    try:
        shards = json.loads(content)["weight_map"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    if not isinstance(shards, dict) or not shards or not all(_is_beside(shard) for shard in shards.values()):
        raise WeightsError(
            f"{path}: expected an index that gives each tensor a file beside it",
            hint="download the whole folder again",
        )
    return shards


def _is_beside(shard: object) -> bool:
    return isinstance(shard, str) and shard.isprintable() and shard not in ("", ".", "..") and not {*shard} & {*"/\\:"}


def _from_shards(path: Path, index: Mapping[str, str]) -> WeightsFile:
    names = sorted(set(index.values()))
    if absent := [name for name in names if not (path.parent / name).exists()]:
        raise WeightsError(
            f"{path.name} lists {len(names)} files, and {len(absent)} are not beside it: {listed(absent)}",
            hint=f"download them into {path.parent}",
        )
    shards = {name: _from_one_file(path.parent / name, *_opened(path.parent / name)) for name in names}
    tensors = {name: _of_shard(shards[shard], name, path.parent / shard) for name, shard in index.items()}
    metadata = {key: value for shard in shards.values() for key, value in shard.metadata.items()}
    return WeightsFile(content=tensors, metadata=metadata, notes=(f"read from the {len(names)} files of {path.name}",))


def _of_shard(shard: WeightsFile, name: str, path: Path) -> Tensor:
    if not isinstance(shard.content, Mapping) or name not in shard.content:
        raise WeightsError(
            f"{path} lacks {plain(name)}, which the index says is there", hint="download the whole folder again"
        )
    tensor: Tensor = shard.content[name]
    return tensor


# --- torch.save --------------------------------------------------------------------------------------------


def _from_archive(path: Path) -> WeightsFile:
    with _open_now(path):
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise WeightsError(
                f"{path} is cut short or damaged: an archive whose end is missing", hint="download or copy it again"
            ) from error
    if (kind := archive_kind(members)) is not None:
        raise kind.refusal(path)
    return _from_torch(path, mmap=True)


def _from_torch(path: Path, *, mmap: bool) -> WeightsFile:
    try:
        return WeightsFile(content=_loaded(path, (), mmap=mmap), metadata={})
    except pickle.UnpicklingError:
        # Objects of classes that torch does not build, or a damaged file.
        pass
    classes = _classes(path)
    try:
        content = _loaded(path, [name for name in classes if _is_record(name)], mmap=mmap)
    except pickle.UnpicklingError as error:
        raise _refused(path, classes) from error
    return WeightsFile(content=content, metadata={}, classes=classes)


def _loaded(path: Path, stand_ins: Collection[str], *, mmap: bool) -> Any:
    import torch

    inert: list[Any] = [(_stand_in(name), name) for name in stand_ins]
    with _open_now(path), _STAND_INS, warnings.catch_warnings(), torch.serialization.safe_globals(inert):
        # They speak of torch's own storages, to its developers.
        warnings.simplefilter("ignore")
        try:
            if path.suffix == ".safetensors":
                # torch.load goes by this ending, and an open file has none. It cannot be mapped.
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except (pickle.UnpicklingError, OSError):
            raise
        except Exception as error:
            # Whatever a reader of bytes raises where they are not what it expects; of a wrong length, MemoryError.
            raise WeightsError(
                f"{path} is cut short or damaged, or larger than memory: reading it ended with {type(error).__name__}",
                hint="download or copy it again",
            ) from error


def _stand_in(name: str) -> type[StandIn]:
    return type(name, (MappingStandIn if name.endswith(_MAPPINGS) else StandIn,), {})


def _is_record(name: str) -> bool:
    *modules, last = name.split(".")
    is_name = all(part.isidentifier() for part in (*modules, last))
    return is_name and (name.startswith(_RECORDS) or name in _PLAIN_TYPES or last[0].isupper())


def _refused(path: Path, classes: Collection[str]) -> WeightsError:
    if not classes:
        return WeightsError(f"{path} is cut short or damaged", hint="download or copy it again")
    if is_module(classes):
        return whole_module(path, classes)
    return WeightsError(
        f"{path} is no plain state dict: it holds objects that only code can make, and none is run: "
        f"{listed(sorted(classes))}",
        hint=_STATE_DICT_HINT,
    )


def is_module(classes: Collection[str]) -> bool:
    """Whether `classes` of a file are those of a whole network."""
    return any(name.startswith("torch.nn.modules.") for name in classes)


def whole_module(path: Path, classes: Collection[str]) -> WeightsError:
    """The refusal of a network that was saved with its classes."""
    own = [name for name in sorted(classes) if not name.startswith(("torch.", "collections.", "builtins."))]
    return WeightsError(
        f"{path} holds a whole network with its classes ({listed(own or sorted(classes), 4)}), not its tensors",
        hint=f"{_STATE_DICT_HINT}; a network that was saved whole is never loaded, because that runs its code",
    )


def _classes(path: Path) -> tuple[str, ...]:
    """What a file of torch.save asks for besides tensors; found by reading its opcodes, none of which is followed."""
    with _open_now(path), path.open("rb") as file:
        try:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    member = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                    with archive.open(member) as pickled:
                        found = set(_globals(pickled))
            else:
                file.seek(0)
                found = {name for _ in range(_OLD_PICKLES) for name in _globals(file)}
        except OSError:
            raise
        except Exception:
            # The opcodes of a damaged file say nothing.
            return ()
    return tuple(sorted(name for name in found if not _OF_TENSORS.match(name)))


def _globals(pickled: IO[bytes]) -> Iterator[str]:
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name == "GLOBAL":
            module, name = str(argument).split(" ", 1)
            # Pickles of protocol 2 hold the names of Python 2.
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            yield f"{module}.{name}"
