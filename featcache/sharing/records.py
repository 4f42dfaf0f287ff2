"""The options of `push`, and the results of `push` and `pull`."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from featcache.config import Option, check
from featcache.display import Shown
from featcache.errors import InvalidOption

if TYPE_CHECKING:
    from featcache.sharing.manifest import Kind

_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """How something is shared. Raises InvalidOption."""

    PANEL: ClassVar[str] = "The card"

    licence: Annotated[
        str | None,
        Option(
            help="The licence under which you share it, as the Hub abbreviates it: mit, apache-2.0, cc-by-4.0, other.",
            flags=("--license", "--licence"),
            metavar="<name>",
            default="not stated",
        ),
    ] = None
    private: Annotated[
        bool, Option(help="Only you and your organisation can see it; for the Hub.", panel="The repository")
    ] = False

    def __post_init__(self) -> None:
        check(self)
        if self.licence is not None and not _LICENCE.fullmatch(self.licence):
            raise InvalidOption(
                f"expected --license with the short name of a licence, got {self.licence!r}",
                hint="for example --license cc-by-4.0; --license other for one of your own",
            )


@dataclass(frozen=True, kw_only=True, repr=False)
class Pushed(Shown):
    """A finished push.

    Attributes:
        kind: "run" or "cache".
        name: Its name.
        target: Where it is now: the folder, or `hf:ORG/NAME`.
        url: The address of its page on the Hub; None for a folder.
        files: The number of its files, without the card and the manifest.
        nbytes: Their size in bytes.
        copied: Whether files were written; False where the same ones were there.
        licence: The licence; None where it was not stated.
        left_out: The names of the run's other files, which are not shared.
        notes: Sentences about what should be known.
    """

    kind: Kind
    name: str
    target: str
    url: str | None
    files: int
    nbytes: int
    copied: bool
    licence: str | None
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The result of `featcache push --json`."""
        return _to_json(self)


@dataclass(frozen=True, kw_only=True, repr=False)
class Pulled(Shown):
    """A finished pull.

    Attributes:
        kind: "run" or "cache".
        name: Its name.
        source: The folder, or `hf:ORG/NAME`.
        path: The run's folder; or the file or the folder of the cache.
        files: The number of its files.
        nbytes: Their size in bytes.
        copied: Whether they were copied; False where the same ones were there.
        licence: The licence; None where it was not stated.
        notes: Sentences about what should be known.
    """

    kind: Kind
    name: str
    source: str
    path: Path
    files: int
    nbytes: int
    copied: bool
    licence: str | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The result of `featcache pull --json`."""
        return _to_json(self) | {"path": str(self.path)}


def _to_json(record: Pushed | Pulled) -> dict[str, Any]:
    values = asdict(record)
    return {("bytes" if name == "nbytes" else name): value for name, value in values.items()}
