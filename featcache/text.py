"""Numbers and foreign text as text for people."""

from __future__ import annotations

import re

# The C0 and C1 controls with DEL, the separators of lines and paragraphs, and what changes the direction of writing.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def escape_controls(text: str) -> str:
    """Text in which control characters are written as escapes, such as `\\x1b`: a terminal obeys none of it."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def message_line(text: str) -> str:
    """A message as one line: blanks for its line breaks, escapes for its control characters."""
    return escape_controls(text.replace("\r\n", " ").replace("\n", " "))


def human_bytes(count: float) -> str:
    """1_234_567 -> "1.2 MB"."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """75.2 -> "1m15s"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def human_count(count: int, singular: str, plural: str | None = None) -> str:
    """(1, "row") -> "1 row"; (2000, "row") -> "2,000 rows"."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
