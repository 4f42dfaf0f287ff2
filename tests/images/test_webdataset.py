"""WebDataset tars: which members belong together, and the image, class and columns of each sample."""

from __future__ import annotations

import json
import pickle
import re
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import encode, write_tar
from image_source_contract import all_samples

from featcache.columns import ColumnOptions
from featcache.errors import SourceError
from featcache.images import ImageSource, open_images
from featcache.images.sources.webdataset import open_webdataset
from featcache.images.tar_patterns import tars_of
from featcache.images.webdataset_rows import MOST_COLUMNS

IMAGE = encode(1)


def source_of(folder: Path, files: Mapping[str, bytes], option: str = "", **options: Any) -> ImageSource:
    return open_images(f"wds:{write_tar(folder / 'x.tar', files)}{option}", columns=ColumnOptions(**options))


def counts_left_out(source: ImageSource) -> dict[str, int]:
    notes = [note.removeprefix("left out: ") for note in source.omissions.notes if note.startswith("left out: ")]
    return {what: int(count.replace(",", "")) for count, _, what in (note.partition(" ") for note in notes)}


def labels(source: ImageSource) -> dict[str, str | None]:
    return {one.id: source.classes[one.label] if one.label >= 0 else None for one in all_samples(source)}


def cells(source: ImageSource, split: str = "train") -> dict[str, list[str | None]]:
    return {column.name: list(column.cells[split]) for column in source.columns}


def as_json(**fields: object) -> bytes:
    return json.dumps(fields).encode()


# samples


def test_a_key_ends_at_the_first_dot_of_the_name_and_folders_may_have_dots(tmp_path: Path) -> None:
    files = {"v1.0/a.jpg": IMAGE, "v1.0/a.cls": b"cat", "v1.1/a.jpg": IMAGE, "v1.1/a.cls": b"dog"}
    assert labels(source_of(tmp_path, files)) == {"x/v1.0/a.jpg": "cat", "x/v1.1/a.jpg": "dog"}


@pytest.mark.parametrize("order", ["classes last", "classes first", "dots"])
def test_classes_apart_from_their_images_are_joined_by_key(tmp_path: Path, order: str) -> None:
    images = {f"{number}.png": encode(number) for number in range(5)}
    classes = {f"{'./' if order == 'dots' else ''}{number}.cls": str(number % 2).encode() for number in range(5)}
    columns = {f"{number}.json": as_json(n=number) for number in range(5)}
    parts = [columns, classes, images] if order == "classes first" else [images, classes, columns]
    source = source_of(tmp_path, {name: content for part in parts for name, content in part.items()})
    assert labels(source) == {f"x/{number}.png": str(number % 2) for number in range(5)}
    assert cells(source) == {"n": ["0", "1", "2", "3", "4"]}


def test_the_same_key_in_another_tar_is_another_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", {"a.png": IMAGE, "a.cls": b"cat"})
    write_tar(tmp_path / "train-1.tar", {"a.png": IMAGE, "a.cls": b"dog"})
    assert labels(open_webdataset(tmp_path)) == {"train-0/a.png": "cat", "train-1/a.png": "dog"}


def test_images_of_compound_extensions_are_left_out_and_counted(tmp_path: Path) -> None:
    files = {f"{n}.{kind}": encode(n) for n in (1, 2) for kind in ("jpg", "seg.png", "depth.png")}
    source = source_of(tmp_path, files)
    assert [one.id for one in all_samples(source)] == ["x/1.jpg", "x/2.jpg"]
    assert counts_left_out(source) == {
        f"images .{kind}, next to the ones that are read": 2 for kind in ("seg.png", "depth.png")
    }


def test_a_compound_extension_can_be_requested(tmp_path: Path) -> None:
    files = {"1.jpg": IMAGE, "1.Seg.PNG": encode(2), "1.cls": b"cat"}
    source = source_of(tmp_path, files, "?image=seg.png")
    assert labels(source) == {"x/1.Seg.PNG": "cat"}
    assert source.read(all_samples(source)[0]) == encode(2)
    assert source.origin.endswith("x.tar?image=seg.png") and source.name == "x"


def test_two_plain_images_of_a_sample_are_refused_until_one_is_named(tmp_path: Path) -> None:
    files = {"1.jpg": IMAGE, "1.png": encode(2), "1.cls": b"cat"}
    with pytest.raises(SourceError, match="second image of the sample 1") as caught:
        source_of(tmp_path, files)
    assert "?image=jpg" in (caught.value.hint or "")
    for extension in ("jpg", "png", "PNG"):
        assert list(labels(source_of(tmp_path, files, f"?image={extension}"))) == [f"x/1.{extension.lower()}"]


def test_without_any_plain_image_the_error_names_the_others(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no images found; left out: images \.rgb\.png") as caught:
        source_of(tmp_path, {"1.rgb.png": IMAGE})
    assert "?image=" in (caught.value.hint or "")


def test_an_option_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="unknown option 'label'"):
        source_of(tmp_path, {"1.png": IMAGE}, "?label=cls")


def test_a_member_twice_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(SourceError, match=r"1\.png is a second image"):
        open_webdataset(tmp_path / "x.tar")


def test_an_image_that_is_a_link_is_not_silently_lost(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"1.png": IMAGE})
    with tarfile.open(tmp_path / "x.tar", "a") as archive:
        link = tarfile.TarInfo("2.png")
        link.type, link.linkname = tarfile.LNKTYPE, "1.png"
        archive.addfile(link)
    with pytest.raises(SourceError, match=r"2\.png is a link to 1\.png") as caught:
        open_webdataset(tmp_path / "x.tar")
    assert "--hard-dereference" in (caught.value.hint or "")


def test_hidden_files_and_other_members_do_not_matter(tmp_path: Path) -> None:
    files = {"._1.png": b"", ".git/1.png": b"", "__MACOSX/1.png": b"", "notes": b"", "1.npy": b"", "1.png": IMAGE}
    assert labels(source_of(tmp_path, files)) == {"x/1.png": None}


def test_text_without_an_image_is_counted(tmp_path: Path) -> None:
    source = source_of(tmp_path, {"1.png": IMAGE, "2.cls": b"3", "2.txt": b"a", "4.json": b"{}"})
    assert counts_left_out(source) == {"samples with a class or columns and no image": 2}


# classes and columns


def test_fields_of_json_are_columns(tmp_path: Path) -> None:
    fields = {"s": "ü", "i": 3, "f": 0.1, "t": True, "none": None, "l": [1, "b", None, 2.5], "o": {"a": 1}, "lo": [{}]}
    source = source_of(tmp_path, {"1.png": IMAGE, "1.json": as_json(**fields), "2.png": IMAGE})
    assert cells(source) == {
        "s": ["ü", None],
        "i": ["3", None],
        "f": ["0.1", None],
        "t": ["True", None],
        "l": ["1;b;2.5", None],
    }


def test_a_caption_is_the_column_txt(tmp_path: Path) -> None:
    source = source_of(tmp_path, {"1.png": IMAGE, "1.txt": b" a cat\n", "2.png": IMAGE, "2.txt": b""})
    assert cells(source) == {"txt": ["a cat", ""]}


def test_columns_stand_in_the_order_of_the_samples_of_each_split(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-1.tar", {"b.png": IMAGE, "b.json": as_json(n="1b"), "a.png": IMAGE, "a.txt": b"1a"})
    write_tar(tmp_path / "train-0.tar", {"c.png": IMAGE, "c.json": as_json(n="0c")})
    write_tar(tmp_path / "val-0.tar", {"d.png": IMAGE})
    source = open_images(f"{tmp_path}/{{train-1,train-0,val-0}}.tar", columns=ColumnOptions())
    assert [one.id for one in source.samples("train")] == ["train-0/c.png", "train-1/a.png", "train-1/b.png"]
    assert cells(source) == {"n": ["0c", None, "1b"], "txt": [None, "1a", None]}
    assert cells(source, "val") == {"n": [None], "txt": [None]}
    copy: ImageSource = pickle.loads(pickle.dumps(source))
    assert cells(copy) == cells(source)


@pytest.mark.parametrize("field", ["label", "cls", "class"])
def test_a_class_in_json_is_no_column(tmp_path: Path, field: str) -> None:
    files = {"1.png": IMAGE, "1.json": as_json(**{field: 3}), "2.png": IMAGE, "2.json": as_json(**{field: None})}
    source = source_of(tmp_path, files)
    assert labels(source) == {"x/1.png": "3", "x/2.png": None}
    assert cells(source) == {}


def test_a_list_in_the_field_of_the_class_makes_labels_of_several_classes(tmp_path: Path) -> None:
    source = source_of(tmp_path, {"1.png": IMAGE, "1.json": as_json(label=[1, 2]), "2.png": IMAGE})
    assert labels(source) == {"x/1.png": None, "x/2.png": None} and cells(source) == {"label": ["1;2", None]}
    assert source.columns[0].kind == "lists"


@pytest.mark.parametrize("order", [("cls", "json"), ("json", "cls")])
def test_cls_overrides_a_different_class_in_json_which_is_counted(tmp_path: Path, order: tuple[str, str]) -> None:
    contents = {"cls": b"281", "json": as_json(label="tabby")}
    source = source_of(tmp_path, {"1.png": IMAGE, **{f"1.{kind}": contents[kind] for kind in order}})
    assert labels(source) == {"x/1.png": "281"}
    assert counts_left_out(source) == {"classes in .json that differ from .cls": 1}


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("1.cls", bytes(2**20 + 1), "1,048,577 bytes, at most 1,048,576"),
        ("1.txt", bytes(2**20 + 1), "1,048,577 bytes, at most 1,048,576"),
        ("1.json", bytes(2**24 + 1), "at most 16,777,216"),
        ("1.txt", b"\xff", "cannot be read"),
        ("1.json", b"[" * 100_000, "cannot be read"),
        ("1.json", b'{"a": ' + b"9" * 5000 + b"}", "cannot be read"),
    ],
)
def test_text_that_cannot_be_used_is_refused(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    with pytest.raises(SourceError, match=rf"{re.escape(name)}.*{match}"):
        source_of(tmp_path, {"1.png": IMAGE, name: content})


def test_columns_are_limited_and_the_others_counted(tmp_path: Path) -> None:
    fields = {f"c{number}": number for number in range(MOST_COLUMNS + 10)}
    options = tuple(f"c{number}" for number in range(MOST_COLUMNS))
    source = source_of(tmp_path, {"1.png": IMAGE, "1.json": as_json(**fields)}, columns=options)
    assert len(source.columns) == MOST_COLUMNS
    assert counts_left_out(source) == {f"cells of more than {MOST_COLUMNS} columns": 10}


# patterns


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    for name in ("x-000", "x-001", "x-010", "y-000", "z"):
        write_tar(tmp_path / f"{name}.tar", {"1.png": IMAGE})
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x-{000..001}.tar", "x-000 x-001"),
        ("x-{001..000}.tar", "x-001 x-000"),
        ("x-{000..010..10}.tar", "x-000 x-010"),
        ("{x,y}-000.tar", "x-000 y-000"),
        ("{x,y}-0{0,}0.tar", None),
        ("{x-{000..001},{y-000,z}}.tar", "x-000 x-001 y-000 z"),
        ("{x,y}-*.tar", "x-000 x-001 x-010 y-000"),
        ("{x-*,x-000}.tar", "x-000 x-001 x-010"),
        ("x-0?0.tar", "x-000 x-010"),
        ("?.tar", "z"),
        ("z.tar", "z"),
    ],
)
def test_a_pattern_is_read_as_bash_does(pattern: str, names: str | None, tars: Path) -> None:
    if names is None:
        with pytest.raises(SourceError, match=r"x-00\.tar is missing"):
            tars_of(tars / pattern)
    else:
        assert [path.stem for path in tars_of(tars / pattern)[1]] == names.split()
        assert len(all_samples(open_images(f"wds:{tars / pattern}", datasets_dir=tars))) == len(names.split())


def test_a_file_named_like_a_pattern_has_precedence(tars: Path) -> None:
    (tars / "odd [1]").mkdir()
    for name in ("{a,b}", "c*", "x-0[0]0"):
        write_tar(tars / "odd [1]" / f"{name}.tar", {"1.png": IMAGE})
        assert tars_of(tars / "odd [1]" / f"{name}.tar")[1] == [tars / "odd [1]" / f"{name}.tar"]


@pytest.mark.parametrize(
    "pattern",
    [
        *("{0..999999999}", "{0..999999999999999999999}", "{000..999}{000..999}", "{a,b}" * 40, "{a..z}" * 300),
        *("{{{0..9999},{0..9999}},{0..9999}}{0..9}", "{0..99999}{x,{y,z}}", "{" + "1" * 900 + ".." + "2" * 900 + "}"),
    ],
)
def test_braces_that_name_too_many_are_refused_before_they_are_expanded(pattern: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(SourceError, match="at most 100,000 are read"):
        open_webdataset(tmp_path / f"x-{pattern}.tar")
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "pattern", ["x-{0..1.tar", "x}-{a,b}.tar", "{" * 900 + "a" + "}" * 900, "x" * 3000, "a**b.tar"]
)
def test_a_pattern_that_cannot_be_read_is_a_source_error(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        open_webdataset(tmp_path / pattern)


def test_alternatives_outside_of_the_folder_are_refused(tars: Path) -> None:
    with pytest.raises(SourceError, match="is outside"):
        open_webdataset(f"{{{tars}/x-000,{tars}/x-001}}.tar")


def test_tars_that_are_links_are_read(tars: Path) -> None:
    (tars / "links").mkdir()
    (tars / "links" / "train-0.tar").symlink_to(tars / "z.tar")
    assert labels(open_webdataset(tars / "links")) == {"train-0/1.png": None}


@given(st.recursive(st.sampled_from(["a", "b1", "{0..3}", "{a..c}", "x.y"]), lambda inner: st.one_of(
    st.lists(inner, min_size=2, max_size=3).map(lambda parts: "{" + ",".join(parts) + "}"),
    st.lists(inner, min_size=1, max_size=3).map("".join),
), max_leaves=8))  # fmt: skip
def test_the_count_of_names_in_braces_equals_their_expansion(pattern: str) -> None:
    from braceexpand import braceexpand

    from featcache.images.tar_patterns import count_names

    expanded = len(list(braceexpand(pattern, escape=False)))
    # A range of letters counts as 52, its greatest possible size.
    assert expanded <= count_names(pattern) and (
        ".." in pattern.replace("0..3", "") or expanded == count_names(pattern)
    )


# compressed ones, in a folder


def test_a_folder_of_compressed_tars_is_refused_with_the_command(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "set").mkdir()
    plain = write_tar(tmp_path / "train-0.tar", {"1.png": IMAGE})
    packed = tmp_path / "set" / "train-0.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(SourceError, match="expected a plain tar") as caught:
        open_images(tmp_path / "set", datasets_dir=tmp_path)
    assert f"`gzip -dk {packed}`" in (caught.value.hint or "")
    plain.rename(tmp_path / "set" / "train-0.tar")
    assert len(all_samples(open_images(tmp_path / "set", datasets_dir=tmp_path))) == 1
