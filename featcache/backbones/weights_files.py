"""Reads weights files: the format is detected from the content, not the name, and nothing in a file is executed.

safetensors         the safetensors library
torch.save          torch.load(weights_only=True)
anything else       WeightsError with the kind of file
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from featcache.errors import WeightsError

_HEAD = 1024
_LONGEST_TEXT = 80
_MOST_LISTED = 8
# Before version 1.6 torch.save wrote several pickles instead of an archive; this magic number is the first one.
_OLD_TORCH_FILE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_DOWNLOAD = "download or copy it again: the file is incomplete or is not the right file"
_EXPORT = "give the weights of the original torch network, as .safetensors or .pth"
STATE_DICT_HINT = "save the tensors with torch.save(network.state_dict(), PATH), or as .safetensors"
# The first bytes of files that are often mistaken for weights, in lower case and without leading blanks.
_BEGINNINGS = (
    (b"<", "a web page (HTML or XML)", "download it again: the address gave a page (a login, a notice, an error)"),
    (b"version https://git-lfs", "a Git LFS pointer, a text instead of the file", "fetch the file: git lfs pull"),
    (b"{", "a JSON text (an index of several files, or a message)", "give one .safetensors or .pth with all tensors"),
    (b"\x89hdf\r\n", "an HDF5 file, as Keras saves weights", _EXPORT),
    (b"\x08", "an ONNX or TensorFlow model", _EXPORT),
    (b"\x80", "a pickle that torch.save did not write", f"{STATE_DICT_HINT}; a pickle is never loaded"),
)
# Members that occur in only one kind of zip archive.
_MEMBERS = (
    ("constants.pkl", "a TorchScript program", f"{STATE_DICT_HINT}; a program is never loaded"),
    (".h5", "a Keras model", _EXPORT),
)
# Training scripts save settings (argparse.Namespace) and NumPy's numbers together with the tensors. Names of classes
# begin with a capital letter; a file that needs any other function is refused.
_RECORD = re.compile(r"(numpy|datetime)\.[\w.]+|[\w.]+\.[A-Z]\w*")


class _StandIn:
    """Replaces an object of a foreign class: it stores nothing and runs no code."""

    def __new__(cls, *_: object, **__: object) -> _StandIn:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Ignore the object's content."""


def read_weights_file(path: Path) -> tuple[Any, Mapping[str, str]]:
    """Read a weights file: its content, with tensors on the CPU as stored, and the metadata of safetensors.

    Args:
        path: A file with any name.

    Raises:
        WeightsError: There is no such file, it cannot be opened, or it contains no weights; the message names its
            content.
    """
    head = _head_of(path)
    # safetensors: the header's length in eight bytes, of which the last four are 0, then JSON.
    if head[4:9] == b"\0\0\0\0{":
        return _from_safetensors(path)
    if head.startswith(b"PK\x03\x04"):
        _refuse_other_archives(path)
    elif not head.startswith(_OLD_TORCH_FILE):
        raise _foreign_error(path, head)
    return _from_torch(path), {}


def plain(text: str) -> str:
    """`text` as one short line of printable characters."""
    shown = text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in shown)


def first_names(names: Iterable[str]) -> str:
    """The first names, and the number of further ones."""
    names = [plain(name) for name in names]
    shown = ", ".join(names[:_MOST_LISTED])
    return f"{shown} and {len(names) - _MOST_LISTED:,} more" if len(names) > _MOST_LISTED else shown


def _head_of(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise WeightsError(f"expected a weights file, got the folder {path}", hint="give one of the files in it")
        if not path.is_file():
            raise WeightsError(f"there is no weights file at {path}", hint="name its place with --weights PATH")
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be opened now: {plain(error.strerror or type(error).__name__)}",
            hint="check its permissions and its disk; the file itself may be intact",
        ) from error


def _damage_error(path: Path, reason: str) -> WeightsError:
    return WeightsError(f"{path} is cut short or damaged: {plain(reason)}", hint=_DOWNLOAD)


# --- safetensors -------------------------------------------------------------------------------------------


def _from_safetensors(path: Path) -> tuple[Any, Mapping[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise _damage_error(path, str(error)) from error


# --- torch.save --------------------------------------------------------------------------------------------


def _from_torch(path: Path) -> Any:
    import torch

    with path.open("rb") as file:
        try:
            stand_ins: list[Any] = [(type(name, (_StandIn,), {}), name) for name in _records_in(path)]
            with torch.serialization.safe_globals(stand_ins):
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise _unsafe_error(path, error) from error
        except Exception as error:
            # The reader raises many kinds of errors for damaged bytes.
            raise _damage_error(path, f"reading it ended with {type(error).__name__}") from error


def _records_in(path: Path) -> Collection[str]:
    """The foreign classes in the file that an empty object can replace; none in the old format."""
    import torch

    if not zipfile.is_zipfile(path):
        return ()
    requested = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [name for name in requested if _RECORD.fullmatch(name)]


def _unsafe_error(path: Path, error: pickle.UnpicklingError) -> WeightsError:
    # torch's own message advises to trust the file, so it is not shown.
    requested = re.search(r"GLOBAL (\S+)", str(error))
    if requested is None:
        return WeightsError(f"{path} is damaged, or contains objects that need the author's code", hint=_DOWNLOAD)
    return WeightsError(
        f"{path} is not a plain state dict: it needs {plain(requested[1])}, but code in a file is never run",
        hint=STATE_DICT_HINT,
    )


# --- files that hold no weights of torch -------------------------------------------------------------------


def _refuse_other_archives(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise _damage_error(path, "an archive whose end is missing") from error
    for ending, what, hint in _MEMBERS:
        if any(member.endswith(ending) for member in members):
            raise _no_weights_error(path, what, hint)
    if not any(member.endswith("data.pkl") for member in members):
        raise _no_weights_error(path, f"a zip archive of {first_names(members) or 'nothing'}", STATE_DICT_HINT)


def _foreign_error(path: Path, head: bytes) -> WeightsError:
    if not head:
        return _no_weights_error(path, "an empty file", _DOWNLOAD)
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, what, hint in _BEGINNINGS:
        if begin.startswith(beginning):
            return _no_weights_error(path, what, hint)
    return _no_weights_error(path, f"an unknown kind of file that begins with {head[:24]!r}", STATE_DICT_HINT)


def _no_weights_error(path: Path, got: str, hint: str) -> WeightsError:
    return WeightsError(f"expected weights, got {got}: {path}", hint=hint)
