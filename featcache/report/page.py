"""Renders the HTML page: template, style and script in one file, with a strict content security policy.

Class names, ids and settings are untrusted text. Jinja escapes them, the script inserts them as text, and the JSON
escapes `<`. The policy runs only this script and loads nothing from outside.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

FOLDER = Path(__file__).parent / "page"


def render_page(page: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The HTML of the page. `page`: values for the template; `data`: values for the script, as JSON."""
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = _environment().get_template("page.html.j2")
    html = template.render(
        page=page,
        data=json_for_page(data),
        script=script,
        script_digest=f"sha256-{digest}",
        style=(FOLDER / "style.css").read_text(encoding="utf-8"),
        version=version("featcache"),
    )
    return readable(html)


def json_for_page(data: Mapping[str, Any]) -> str:
    """JSON that is safe inside a script element: without `<`, which could end it, and without surrogates."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    escaped = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return readable(escaped)


def readable(text: str) -> str:
    """Text that UTF-8 can encode: bytes of a file name that are not UTF-8 are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def per_cent(share: float | None, digits: int = 1) -> str:
    """0.7125 -> "71.3 %"; None -> ""."""
    return "" if share is None else f"{100 * share:.{digits}f} %"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["per_cent"] = per_cent
    return environment
