"""Fenced blocks of a Markdown page, and what of them is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# A fence, at most one blank line after the comment that is meant for it.
_FENCE = re.compile(
    r"(?:^<!--\s*(?P<note>[^\n]*?)\s*-->\n\n?)?^(?P<fence>```+)(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=fence)\s*$",
    re.MULTILINE | re.DOTALL,
)
SHELL = ("bash", "console")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: where it begins, its language, its text, and the HTML comment right before it."""

    line: int
    language: str
    text: str
    note: str = ""

    @property
    def not_run(self) -> str | None:
        """The reason in `<!-- not run: reason -->`."""
        return self._text_of("not run")

    @property
    def needs(self) -> str | None:
        """The path in `<!-- needs: ../shared -->`: run only where it exists."""
        return self._text_of("needs")

    def _text_of(self, what: str) -> str | None:
        key, colon, value = self.note.partition(":")
        return value.strip() if colon and key.strip() == what else None

    def script(self) -> str:
        """The shell commands of a block, each with the lines that continue it."""
        if self.language == "bash":
            return self.text
        lines: list[str] = []
        continued = False
        for line in self.text.splitlines():
            if line.startswith("$ ") or continued:
                lines.append(line.removeprefix("$ "))
                continued = line.endswith("\\")
        return "".join(line + "\n" for line in lines)


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, from top to bottom."""
    for match in _FENCE.finditer(text):
        yield Block(
            line=text.count("\n", 0, match.start("fence")) + 1,
            language=match["language"],
            text=match["text"],
            note=match["note"] or "",
        )


def without_fences(text: str) -> str:
    """A page's text without its fenced blocks."""
    return _FENCE.sub("", text)


def without_code(text: str) -> str:
    """A page's text without fenced blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", without_fences(text))
