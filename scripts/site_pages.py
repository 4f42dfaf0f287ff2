"""Adds the pages outside docs/ to the site, and adapts links (a hook of MkDocs).

README.md, CONTRIBUTING.md and CHANGELOG.md are written for readers of the repository: their links begin at its root.
Here they become pages next to those of docs/.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: Files at the root -> their pages.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# A picture or another file that a page shows: `](path)`, `src="path"`, `srcset="path"`.
_LINK = re.compile(r"""(?P<before>\]\(|\bsrc="|\bsrcset=")(?P<path>[^)\s"#:]+)(?P<anchor>#[^)\s"]*)?(?P<after>[)"])""")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the root and the files that they show."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=relink(text)))
        for path in shown_files(text):
            if files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Pages of docs/: links to the root's pages; "```csv list.csv" becomes a block with a title."""
    for name, made in PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({made}")
    return re.sub(r"^(```+\w+) ([\w.-]+)$", r'\1 title="\2"', markdown, flags=re.MULTILINE)


def relink(text: str) -> str:
    """A page of the root with links as from docs/: `docs/faq.md` -> `faq.md`, `CONTRIBUTING.md` -> `contributing.md`.

    Args:
        text: The page in Markdown.
    """

    def link(match: re.Match[str]) -> str:
        path = match["path"]
        path = PAGES.get(path, path.removeprefix("docs/"))
        return f"{match['before']}{path}{match['anchor'] or ''}{match['after']}"

    return _LINK.sub(link, text)


def shown_files(text: str) -> list[str]:
    """The files of the repository, outside docs/, that a page links to and that are no pages."""
    paths = dict.fromkeys(match["path"] for match in _LINK.finditer(text))
    return [path for path in paths if not path.startswith("docs/") and path not in PAGES and (ROOT / path).is_file()]
