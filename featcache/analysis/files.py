"""Writes an audit to a JSON file (everything) or a CSV file (one line per image of each finding)."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Final

from featcache.analysis.records import Audit, class_name
from featcache.errors import InvalidOption
from featcache.files import publish_bytes

SUFFIXES: Final = (".json", ".csv")
HEADER: Final = ("kind", "finding", "score", "id", "split", "label", "suggested", "reason")


def check_name(path: Path) -> None:
    """Raises InvalidOption unless the name ends in .json or .csv."""
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidOption(f"expected a .json or .csv file, got {path.name!r}")


def write_audit(path: Path, audit: Audit) -> None:
    """Write all findings atomically. Raises InvalidOption, CacheUnwritable."""
    check_name(path)
    text = as_csv(audit) if path.suffix.lower() == ".csv" else json.dumps(audit.to_json(), indent=1, allow_nan=False)
    publish_bytes(path, text.encode("utf-8", "surrogateescape"))


def as_csv(audit: Audit) -> str:
    """CSV text: HEADER, then one line per image of each finding; a finding without images has one line."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(HEADER)
    for section in audit.sections:
        for number, finding in enumerate(section.findings, start=1):
            suggested = "" if finding.suggested is None else class_name(finding.suggested, audit.classes)
            named = [(one.id, one.split, class_name(one.label, audit.classes) or "") for one in finding.samples]
            for image in named or [("", "", "")]:
                writer.writerow((section.kind, number, f"{finding.score:.4f}", *image, suggested, finding.reason))
    return lines.getvalue()
