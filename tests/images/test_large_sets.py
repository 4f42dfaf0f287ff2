"""The formats of large sets: WebDataset tars, tables of paths and URLs."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from image_files import encode, images_at, write_folder, write_tar
from image_source_contract import ImageSourceContract, Open, all_samples

from featcache.errors import ImageError, SourceError
from featcache.images import ImageSource, open_images
from featcache.images.sources.webdataset import open_webdataset
from featcache.images.web import fetch

FILES = images_at("photos/a.png", "photos/b.png", "elsewhere/c d.png", "photos/ü.png")


def samples_of(*keys: str, classes: Sequence[str], kind: str = "cls") -> dict[str, bytes]:
    """The members of a WebDataset tar: for every key an image and its class."""
    files: dict[str, bytes] = {}
    for number, (key, name) in enumerate(zip(keys, classes, strict=True)):
        files[f"{key}.png"] = encode(number + len(key))
        files[f"{key}.{kind}"] = json.dumps({"label": name}).encode() if kind == "json" else name.encode()
        files[f"{key}.txt"] = b"a caption"
    return files


def write_tars(root: Path) -> Path:
    root.mkdir()
    write_tar(root / "train-000.tar", samples_of("0001", "0002", classes=["2", "10"]))
    write_tar(root / "train-001.tar", samples_of("0002", "0003", classes=["10", "2"]))
    write_tar(root / "val-000.tar", samples_of("0001", classes=["2"]))
    return root


def write_table(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        columns = {name: [row.get(name) for row in rows] for name in names}
        pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_list(root: Path, name: str = "list.csv") -> Path:
    write_folder(root, FILES)
    rows = [{"path": place, "label": "cat" if n % 2 else "dog"} for n, place in enumerate(sorted(FILES, reverse=True))]
    return write_table(root / name, [{**row, "split": "validation" if n == 3 else ""} for n, row in enumerate(rows)])


class TestWebDataset(ImageSourceContract):
    @pytest.fixture
    def open_it(self, tmp_path: Path) -> Open:
        folder = write_tars(tmp_path / "tars")
        return lambda: open_images(folder, datasets_dir=tmp_path)


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.parquet"])
class TestTable(ImageSourceContract):
    @pytest.fixture
    def open_it(self, name: str, tmp_path: Path) -> Open:
        path = write_list(tmp_path / "a set", name)
        return lambda: open_images(path, datasets_dir=tmp_path)

    def test_it_lists_the_rows_of_the_table(self, source: ImageSource) -> None:
        assert source.classes == ("cat", "dog")
        assert [one.id for one in source.samples("train")] == ["photos/a.png", "photos/b.png", "photos/ü.png"]
        assert [source.classes[one.label] for one in source.samples("train")] == ["dog", "cat", "dog"]
        assert [one.id for one in source.samples("val")] == ["elsewhere/c d.png"]
        assert source.read(source.samples("train")[0]) == FILES["photos/a.png"]


# --- WebDataset --------------------------------------------------------------------------------------------


def test_classes_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    source = open_images(write_tars(tmp_path / "tars"), datasets_dir=tmp_path)
    assert source.classes == ("2", "10")
    assert [one.id for one in source.samples("train")] == [
        "train-000/0001.png",
        "train-000/0002.png",
        "train-001/0002.png",
        "train-001/0003.png",
    ]
    assert [one.label for one in source.samples("train")] == [0, 1, 1, 0]
    assert [one.id for one in source.samples("val")] == ["val-000/0001.png"]


def test_split_folders_and_json_labels_are_read(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "set" / split).mkdir(parents=True)
        members = samples_of("a/1", "a/2", classes=["cat", "dog"], kind="json")
        write_tar(tmp_path / "set" / split / "0.tar", members)
    source = open_images(tmp_path / "set", datasets_dir=tmp_path)
    assert source.classes == ("cat", "dog")
    assert [one.id for one in source.samples("test")] == ["test/0/a/1.png", "test/0/a/2.png"]


@pytest.mark.parametrize("pattern", ["train-{000..001}.tar", "train-*.tar", "train-00[01].tar"])
def test_a_pattern_names_the_tars(pattern: str, tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "tars")
    source = open_images(f"wds:{folder}/{pattern}", datasets_dir=tmp_path)
    assert len(all_samples(source)) == 4 and source.splits() == ("train",)


def test_a_number_missing_from_a_pattern_is_an_error(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "tars")
    with pytest.raises(SourceError, match=r"train-002\.tar is missing"):
        open_images(f"{folder}/train-{{000..003}}.tar", datasets_dir=tmp_path)


def test_a_tar_of_samples_is_not_taken_for_a_flat_folder(tmp_path: Path) -> None:
    tar = write_tars(tmp_path / "tars") / "train-000.tar"
    with pytest.raises(SourceError, match="WebDataset") as raised:
        open_images(tar, datasets_dir=tmp_path)
    assert str(raised.value.hint) == f"use wds:{tar}"
    assert len(all_samples(open_images(f"wds:{tar}", datasets_dir=tmp_path))) == 2


def test_a_tar_in_a_folder_of_images_is_ignored(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", images_at("cat/1.png", "dog/1.png"))
    write_tar(folder / "backup.tar", samples_of("1", classes=["x"]))
    assert open_images(folder, datasets_dir=tmp_path).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("files", "name", "match"),
    [
        ({"1.png": encode(1), "1.jpg": encode(2)}, "train-0.tar", "second image of the sample"),
        ({"1.cls": b"3"}, "train-0.tar", "no images found"),
        ({"1.png": encode(1), "1.json": b"{"}, "train-0.tar", "cannot be read"),
        ({"1.png": encode(1), "1.cls": b"\xff"}, "train-0.tar", "cannot be read"),
        ({"1.png": encode(1)}, "train-val-0.tar", "its name has train and val"),
        ({"1.png": encode(1)}, "train-0.tar.gz", "no such tar"),
    ],
)
def test_tars_that_cannot_be_understood_are_refused(
    files: dict[str, bytes], name: str, match: str, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set" / name, files)
    with pytest.raises(SourceError, match=match):
        open_webdataset(tmp_path / "set" / "*.tar")


def test_a_tar_that_changed_since_it_was_listed_is_an_image_error(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "tars")
    source = open_images(folder, datasets_dir=tmp_path)
    tar = folder / "train-000.tar"
    os.utime(tar, ns=(1, 1))
    with pytest.raises(ImageError, match="changed since it was listed"):
        source.read(source.samples("train")[0])
    tar.unlink()
    with pytest.raises(ImageError, match="cannot be read"):
        source.read(source.samples("train")[0])


# --- tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"picture": "a.png"}], "no column names or holds images; it has picture"),
        ([{"path": "a.png", "split": "extra"}], "row 2: expected the split train, val or test, got 'extra'"),
        ([{"path": "a.png", "label": "x"}, {"path": "", "label": "y"}], "row 3: names no image"),
        ([{"path": "a.png", "sha256": "12"}], "64 hexadecimal digits"),
        ([{"path": "a.png"}, {"path": "a.png"}], "listed twice"),
        ([{"url": "s3://bucket/a.png"}], "expected http or https, got s3"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(rows: list[dict[str, object]], match: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=match):
        open_images(write_table(tmp_path / "list.csv", rows), datasets_dir=tmp_path)


def test_an_invalid_table_is_refused(tmp_path: Path) -> None:
    for name, content in (("a.csv", b"\xff\xfe\x00"), ("b.parquet", b"PAR1"), ("c.csv", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=name):
            open_images(tmp_path / name, datasets_dir=tmp_path)


def test_bytes_that_lack_the_digest_in_the_table_are_an_image_error(tmp_path: Path) -> None:
    write_folder(tmp_path, FILES)
    sha256 = hashlib.sha256(FILES["photos/a.png"]).hexdigest()
    table = write_table(tmp_path / "list.csv", [{"path": place, "sha256": sha256} for place in FILES])
    source = open_images(table, datasets_dir=tmp_path)
    right, wrong = source.samples("train")[1], source.samples("train")[2]
    assert source.read(right) == FILES[right.id]
    with pytest.raises(ImageError, match="expected sha256"):
        source.read(wrong)


class _Handler(BaseHTTPRequestHandler):
    """Serves `FILES`; a path below "/flaky/" fails with 503 twice before."""

    failures: dict[str, int]

    def do_GET(self) -> None:
        name = self.path.lstrip("/").removeprefix("flaky/")
        self.failures[self.path] = self.failures.get(self.path, 0) + 1
        if self.path.startswith("/flaky/") and self.failures[self.path] < 3:
            self.send_error(503)
        elif name not in FILES:
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(FILES[name])

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[str]:
    handler = type("Answers", (_Handler,), {"failures": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=partial(running.serve_forever, poll_interval=0.01))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_urls_are_read_and_tried_again_if_the_server_fails(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    sha256 = hashlib.sha256(FILES["photos/b.png"]).hexdigest()
    rows: list[dict[str, object]] = [
        {"url": f"{server}/photos/a.png", "label": "cat", "sha256": ""},
        {"url": f"{server}/flaky/photos/b.png", "label": "dog", "sha256": sha256},
        {"url": f"{server}/nowhere.png", "label": "dog", "sha256": ""},
    ]
    monkeypatch.setattr("featcache.images.web.fetch", partial(fetch, wait=waited.append))
    source = open_images(write_table(tmp_path / "list.csv", rows), datasets_dir=tmp_path)
    by_end = {one.id.rsplit("/", 1)[1]: one for one in source.samples("train")}
    assert source.read(by_end["a.png"]) == FILES["photos/a.png"] and not waited
    assert source.read(by_end["b.png"]) == FILES["photos/b.png"] and waited == [2.0, 4.0]
    assert source.stamp(by_end["a.png"]) is None
    assert source.stamp(by_end["b.png"]) == ("sha256", sha256)
    with pytest.raises(ImageError, match="the server answers 404"):
        source.read(by_end["nowhere.png"])
