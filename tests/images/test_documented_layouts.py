"""docs/images.md: every row of its table of layouts is created and opened, and all its names are valid."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections import defaultdict
from pathlib import Path, PurePosixPath

import pytest
from image_files import encode, write_folder, write_tar, write_zip

from featcache.images import locate, open_images
from featcache.images.image_paths import is_image

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PAGE = (Path(__file__).parents[2] / "docs" / "images.md").read_text()
TABLES = dict(re.findall(r"^```(?:csv|json) (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


def rows_below(header: str) -> list[list[str]]:
    """The cells of the table with this header."""
    lines = PAGE.partition(f"{header}\n")[2].splitlines()
    found = []
    for line in lines[1:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


LAYOUTS = rows_below("| `--dataset` | what is there | splits | classes |")
NAMES = rows_below("| `--dataset` | is |")


def content_of(path: str) -> bytes:
    """The content of a file: a table of the page if it has one of that name, else a unique picture."""
    name, _, text = path.partition("=")
    table = TABLES.get(PurePosixPath(name).name)
    if text or not table:
        return text.encode() if text else encode(sum(map(ord, path)), "JPEG")
    return as_parquet(table) if name.endswith(".parquet") else table.encode()


def as_parquet(table: str) -> bytes:
    """The rows of a CSV as Parquet; a column named image contains pictures."""
    rows = list(csv.DictReader(io.StringIO(table)))
    columns = {
        name: [encode(n, "JPEG") if name == "image" else row[name] for n, row in enumerate(rows)] for name in rows[0]
    }
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def make(paths: list[str], root: Path) -> None:
    """Create files, and archives with the members below them."""
    archives: dict[str, dict[str, bytes]] = defaultdict(dict)
    for path in paths:
        archive, inside, member = re.match(r"(.*?\.(?:zip|tar)|)(/|)(.*)", path).groups()  # type: ignore[union-attr]
        if archive and inside:
            archives[archive][member.partition("=")[0]] = content_of(path)
        else:
            write_folder(root, {path: content_of(path)})
    for archive, members in archives.items():
        (root / archive).parent.mkdir(parents=True, exist_ok=True)
        (write_zip if archive.endswith(".zip") else write_tar)(root / archive, members)


@pytest.mark.parametrize(
    ("given", "there", "splits", "classes"), LAYOUTS, ids=[f"{r[0]}: {r[1][:60]}" for r in LAYOUTS]
)
def test_a_documented_layout_is_read_as_documented(
    tmp_path: Path, given: str, there: str, splits: str, classes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(re.findall(r"`([^`]+)`", there), tmp_path)
    monkeypatch.chdir(tmp_path)
    place, *words = shlex.split(given.strip("`"))
    assert words[::2] == ["--split-by-folder"] * (len(words) // 2)
    with open_images(place, split_by_folder=words[1::2]) as source:
        assert ", ".join(source.splits()) == splits
        assert (", ".join(source.classes) or "unlabelled") == classes
        samples = [sample for split in source.splits() for sample in source.samples(split)]
        assert all((sample.label >= 0) == (classes != "unlabelled") for sample in samples)
        assert all(source.read(sample) for sample in samples)


def test_the_page_has_layouts_and_tables_and_uses_them_all() -> None:
    assert len(LAYOUTS) > 20
    used = {PurePosixPath(path).name for row in LAYOUTS for path in re.findall(r"`([^`]+)`", row[1])}
    assert TABLES.keys() <= used
    assert not any(map(is_image, TABLES))


@pytest.mark.parametrize("name", [row[0] for row in NAMES])
def test_a_documented_name_is_a_name(name: str) -> None:
    kinds = {"cifar10": "named set", "torchvision:USPS": "torchvision", "hf:ORG/NAME": "hub"}
    assert locate(name.strip("`")).kind == kinds[name.strip("`")]
