"""Words that the project does not use, and where they stand: `python tests/project/words.py featcache/images`."""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

#: Persons for things, and the private dialect of earlier versions.
BANNED = frozenset(
    [
        "who",
        "whom",
        "whoever",
        "he",
        "she",
        "his",
        "her",
        "hers",
        "him",
        "somebody",
        "someone",
        "anybody",
        "anyone",
        "nobody",
        "everybody",
        "everyone",
        "said",
        "told",
        "tells",
        "theirs",
        "twin",
        "twins",
        "shelf",
        "shelves",
        "room",
        "rooms",
        "house",
        "heir",
        "heirs",
        "stranger",
        "strangers",
        "witness",
        "witnesses",
        "album",
        "albums",
        "wish",
        "wishes",
        "heard",
        "mend",
        "mended",
        "mends",
        "desk",
    ]
)
#: Verbs of speech: not as names of code.
BANNED_NAMES = BANNED | {"say", "says", "ask", "asks", "asked"}
_ADJECTIVES = frozenset(["seed", "speed", "need", "feed", "embed", "red"])
_IRREGULAR = frozenset(
    [
        "made",
        "found",
        "kept",
        "drawn",
        "taken",
        "written",
        "chosen",
        "left",
        "known",
        "seen",
        "given",
        "shown",
        "built",
        "sent",
        "meant",
        "held",
        "hidden",
    ]
)
_DECIDING = ("property", "cached_property", "fixture", "overload", "override")


@cache
def words(name: str) -> list[str]:
    """`ImageHelpers`, `image_helpers` -> ["image", "helpers"]."""
    return [word for word in re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower().split("_") if word]


def banned_words(text: str) -> list[str]:
    """The banned words of a text."""
    return [word for word in re.findall(r"[a-z]+", re.sub(r"[^\W\d]*_\w*", " ", text).lower()) if word in BANNED]


def offences(path: Path) -> Iterator[str]:
    """`line: what` for each banned word of a module in comments, texts and names, and each participle as a name."""
    source = path.read_text(encoding="utf-8")
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
                yield from (f"{token.start[0]}: {word!r} in a comment or text" for word in banned_words(token.string))
    for node in ast.walk(ast.parse(source)):
        for name in names_defined(node):
            for word in words(name):
                if word in BANNED_NAMES:
                    yield f"{node.lineno}: {word!r} in the name {name}"  # type: ignore[attr-defined]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_participle(node):
            yield f"{node.lineno}: the function {node.name} is named by a past participle"


def names_defined(node: ast.AST) -> list[str]:
    """The names that a node defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return [node.attr]
    return []


def _is_participle(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function's name begins with a past participle, where it is neither a property nor a yes or no."""
    if any(word in ast.unparse(one) for one in node.decorator_list for word in _DECIDING):
        return False
    if isinstance(node.returns, ast.Name) and node.returns.id in ("bool", "TypeGuard"):
        return False
    first = next(iter(words(node.name)), "")
    return first in _IRREGULAR or (first.endswith("ed") and first not in _ADJECTIVES)


if __name__ == "__main__":
    for place in map(Path, sys.argv[1:]):
        for module in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            for offence in offences(module):
                print(f"{module}:{offence}")
