"""The texts of zero-shot heads: what follows `text:` or `text+linear:` in the name of a head, divided by `|`.

    a photo of a {}      a template; {} is replaced by the name of a class
    templates.txt        a file with one template per line
    tokenizer.json       a tokenizer, for a network whose own one open_clip does not contain (SigLIP)

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021): a class is the mean of
the embeddings of several texts about it. Class names are often names of folders, so underscores become spaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featcache.errors import HeadError, InvalidOption

NAME = "{}"
_TEMPLATES, _TOKENIZER = ".txt", ".json"


def parse_templates(kind: str, text: str) -> tuple[str, ...]:
    """The parts of the text after a head's colon; no file is opened. Raises InvalidOption."""
    parts = tuple(part.strip() for part in text.split("|"))
    wrong = [part for part in parts if NAME not in part and not part.endswith((_TEMPLATES, _TOKENIZER))]
    tokenizers = [part for part in parts if _is_tokenizer(part)]
    if wrong or len(tokenizers) > 1 or len(tokenizers) == len(parts):
        got = repr(wrong[0] if wrong else text)
        raise InvalidOption(
            f"expected a text with {NAME} for the name of a class, or a .txt file of such texts, got {got}",
            hint=f'--head "{kind}:a photo of a {NAME}"; several are divided by |, as is the tokenizer.json of SigLIP',
        )
    return parts


def tokenizer_of(parts: Sequence[str]) -> Path | None:
    """The tokenizer file among the parts of a name; None if there is none."""
    return next((Path(part).expanduser() for part in parts if _is_tokenizer(part)), None)


def absolute_files(parts: Sequence[str]) -> tuple[str, ...]:
    """The parts of a name, with absolute paths of the files among them."""
    return tuple(part if NAME in part else str(Path(part).expanduser().absolute()) for part in parts)


def read_templates(parts: Sequence[str]) -> tuple[str, ...]:
    """All templates among the parts of a name, those of files included, each once.

    Raises:
        HeadError: A file cannot be read, is empty, or has a line without {}.
    """
    found: list[str] = []
    for part in parts:
        if NAME in part:
            found.append(part)
        elif part.endswith(_TEMPLATES):
            found += _lines(Path(part).expanduser())
    return tuple(dict.fromkeys(found))


def texts_of(names: Sequence[str], templates: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The texts of each class, by its name and every template.

    Raises:
        HeadError: Two classes have the same texts.
    """
    words = [" ".join(name.replace("_", " ").split()) for name in names]
    for name, word in zip(names, words, strict=True):
        first = names[words.index(word)]
        if not word or first != name:
            raise HeadError(
                f"the class {name!r} has no words of its own"
                + (f": it has the same texts as {first!r}" if word else ""),
                hint="rename it: zero-shot heads know a class by its name alone",
            )
    return tuple(tuple(template.replace(NAME, word) for template in templates) for word in words)


def _is_tokenizer(part: str) -> bool:
    return NAME not in part and part.endswith(_TOKENIZER)


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise HeadError(f"the templates in {path} cannot be read: {error}", hint="a text file, UTF-8") from error
    found = [line for line in lines if line]
    wrong = [line for line in found if NAME not in line]
    if wrong or not found:
        raise HeadError(
            f"{path}: expected one template per line, each with {NAME} for the name of a class, got "
            + (repr(wrong[0]) if wrong else "none")
        )
    return found
