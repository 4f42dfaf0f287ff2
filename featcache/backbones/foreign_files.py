"""Files that are no weights, recognised by their first bytes, members or names: what each is, and what to do."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from featcache.errors import WeightsError

MOST_LISTED = 8
_LONGEST = 80

_AGAIN = "download it again: what came is not the file"
_STATE_DICT = "give a .safetensors file, or a .pth of network.state_dict()"
_EXPORT = "give the weights of the torch network that it was made of, as .safetensors or .pth"
_UNPACK = "unpack it, and give the file in it"


@dataclass(frozen=True, kw_only=True)
class ForeignKind:
    """A kind of file that is no weights file of torch's."""

    what: str
    hint: str

    def refusal(self, path: Path) -> WeightsError:
        return WeightsError(f"expected weights, got {self.what}: {path}", hint=self.hint)


def plain(text: str) -> str:
    """`text` as one short line of printable characters."""
    shown = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in shown)


def listed(names: Iterable[str], most: int = MOST_LISTED, *, separator: str = ", ") -> str:
    """The first names, and how many more there are."""
    names = [plain(name) for name in names]
    shown = separator.join(names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def foreign(path: Path, size: int, head: bytes) -> WeightsError:
    """The error for a file that begins with `head` and is no weights file."""
    if size == 0:
        return ForeignKind(what="an empty file", hint=_AGAIN).refusal(path)
    return (_by_text(head) or _by_bytes(head, path.name) or _unknown(head)).refusal(path)


# --- archives ----------------------------------------------------------------------------------------------


def archive_kind(members: Collection[str]) -> ForeignKind | None:
    """What a zip archive with these members is; None for one of torch.save's."""
    ends = {"/" + member.partition("/")[2] if "/" in member else member for member in members}
    if any(end.startswith("/code/") for end in ends) or "/constants.pkl" in ends:
        return ForeignKind(what="a TorchScript program", hint=f"{_STATE_DICT}; a program is never loaded")
    if "/archive_format" in ends or "serialized_exported_program.json" in ends:
        return ForeignKind(what="a program of torch.export", hint=f"{_STATE_DICT}; a program is never loaded")
    if "/data.pkl" in ends:
        return None
    if "model.weights.h5" in members:
        return ForeignKind(what="a Keras model", hint=_EXPORT)
    if members and all(member.endswith(".npy") for member in members):
        return ForeignKind(what="a NumPy archive", hint="save its arrays as .safetensors, by the network's own names")
    return ForeignKind(what=f"a zip archive of {listed(members, 4) or 'nothing'}", hint=_UNPACK)


# --- texts -------------------------------------------------------------------------------------------------


def _by_text(head: bytes) -> ForeignKind | None:
    text = _text(head)
    if text is None:
        return None
    begin = text.lower()
    if begin.startswith(("version https://git-lfs", "version http://git-media", "version https://hawser")):
        return ForeignKind(
            what="a Git LFS pointer, a text that stands for the file", hint="fetch the file itself: git lfs pull"
        )
    if "annex/objects/" in begin.partition("\n")[0]:
        return ForeignKind(
            what="a git-annex pointer, a text that stands for the file", hint="fetch the file itself: git annex get"
        )
    if begin.startswith("<"):
        page = "an HTML page" if "<html" in begin or "<!doctype html" in begin else "an XML page"
        return ForeignKind(
            what=f"{page} saved as weights",
            hint="download it again: the address gave a page (a login, a notice, an error)",
        )
    if begin.startswith(("{", "[")):
        return ForeignKind(what=f"a JSON text ({plain(text)})", hint=_AGAIN)
    return ForeignKind(what=f"a text that begins with '{plain(text)}'", hint=_AGAIN)


def _text(head: bytes) -> str | None:
    """The first line and more of a text file, without what stands before its first letter; None for bytes."""
    wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        # The last letter may be cut.
        text = codecs.getincrementaldecoder("utf-16" if wide else "utf-8-sig")().decode(head).lstrip()
    except UnicodeDecodeError:
        return None
    return text if text and all(letter.isprintable() or letter in "\t\r\n\f" for letter in text) else None


# --- bytes -------------------------------------------------------------------------------------------------


def _has(*beginnings: bytes) -> Callable[[bytes, str], bool]:
    return lambda head, _: head.startswith(beginnings)


def _is_named(pattern: str) -> Callable[[bytes, str], bool]:
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda _, name: compiled.search(name) is not None


def _is_tensorflow_graph(head: bytes, name: str) -> bool:
    # A SavedModel: version 1, then a graph.
    return head.startswith(b"\x08\x01\x12") and not _is_onnx(head, name)


def _is_onnx(head: bytes, name: str) -> bool:
    # Protocol buffers: a small version, then the name of what wrote it.
    return re.match(rb"\x08[\x01-\x1f]\x12[\x01-\x40][A-Za-z][\w. -]+", head) is not None or name.endswith(".onnx")


_TENSORFLOW = "a TensorFlow file"
_KINDS: tuple[tuple[Callable[[bytes, str], bool], ForeignKind], ...] = (
    (_has(b"\x89HDF\r\n\x1a\n"), ForeignKind(what="an HDF5 file, as Keras saves weights", hint=_EXPORT)),
    (_has(b"GGUF"), ForeignKind(what="a GGUF file of quantised weights", hint=_EXPORT)),
    (_has(b"\x93NUMPY"), ForeignKind(what="a NumPy array", hint=_STATE_DICT)),
    (lambda head, _: head[4:8] == b"TFL3", ForeignKind(what="a TensorFlow Lite model", hint=_EXPORT)),
    (lambda head, _: head[257:262] == b"ustar", ForeignKind(what="a tar archive", hint=_UNPACK)),
    (
        _has(b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf"),
        ForeignKind(what="a compressed file", hint=_UNPACK),
    ),
    (_is_onnx, ForeignKind(what="an ONNX model", hint=_EXPORT)),
    (_is_tensorflow_graph, ForeignKind(what=_TENSORFLOW, hint=_EXPORT)),
    (_is_named(r"\.pb$|\.data-\d+-of-\d+$|\.ckpt\.(index|meta)$"), ForeignKind(what=_TENSORFLOW, hint=_EXPORT)),
    (_is_named(r"\.(keras|h5|hdf5)$"), ForeignKind(what="a damaged Keras file", hint=_EXPORT)),
    (_is_named(r"\.msgpack$"), ForeignKind(what="weights of Flax", hint=_EXPORT)),
    (
        _has(*(b"\x80" + bytes([protocol]) for protocol in range(2, 6))),
        ForeignKind(
            what="a pickle that torch.save did not write, or the beginning of one",
            hint="save it with torch.save(network.state_dict(), PATH), or as safetensors; a pickle is never loaded",
        ),
    ),
)


def _by_bytes(head: bytes, name: str) -> ForeignKind | None:
    return next((kind for matches, kind in _KINDS if matches(head, name)), None)


def _unknown(head: bytes) -> ForeignKind:
    return ForeignKind(what=f"an unknown kind of file that begins with the bytes {head[:8].hex(' ')}", hint=_STATE_DICT)
