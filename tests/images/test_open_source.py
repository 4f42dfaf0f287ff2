"""`open_images`: from the images argument to a source."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from image_files import images_at, write_folder, write_zip

import featcache.images
from featcache.errors import SourceError, UnknownName
from featcache.extraction.request import Request
from featcache.images import open_images
from featcache.images.location import Location

FILES = images_at("a/1.png", "b/1.png")


def test_a_name_has_precedence_over_a_folder_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "digits", FILES)
    monkeypatch.chdir(tmp_path)
    assert open_images("digits", datasets_dir=tmp_path).origin == "digits"
    assert open_images("./digits", datasets_dir=tmp_path).origin == str(tmp_path / "digits")
    assert open_images(Path("digits"), datasets_dir=tmp_path).origin == str(tmp_path / "digits")


def test_a_folder_in_the_current_folder_needs_no_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "mine", FILES)
    monkeypatch.chdir(tmp_path)
    assert open_images("mine", datasets_dir=tmp_path).name == "mine"


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zip(tmp_path / "mine.zip", FILES)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_images("~/mine.zip", datasets_dir=tmp_path).name == "mine"


@pytest.mark.parametrize("path", ["no/such", "./gone", "gone.zip", "gone.tar.gz", "~/gone"])
def test_a_path_that_does_not_exist_is_a_source_error(path: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        open_images(path, datasets_dir=tmp_path)


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, FILES)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownName):
        open_images("", datasets_dir=tmp_path)


@pytest.mark.parametrize("path", ["/dev/null", "x/" * 5000, "nul\0/x"])
def test_what_cannot_be_opened_is_a_source_error(path: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        open_images(path, datasets_dir=tmp_path)


@pytest.mark.parametrize(("name", "nearest"), [("cifar1", "cifar10"), ("CIFAR10", "cifar10"), ("digit", "digits")])
def test_an_unknown_name_offers_the_nearest(name: str, nearest: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=f"unknown data set '{name}'") as caught:
        open_images(name, datasets_dir=tmp_path)
    assert nearest in (caught.value.hint or "")
    assert "featcache datasets" in (caught.value.hint or "")


def test_public_names_are_those_listed() -> None:
    for name in featcache.images.__all__:
        assert getattr(featcache.images, name) is not None
        assert name in dir(featcache.images)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = featcache.images.nothing


def test_opening_paths_and_digits_needs_no_torch(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", FILES)
    code = (
        "import sys; from pathlib import Path; from featcache.images import open_images, decode; "
        f"s = open_images({str(tmp_path / 'set')!r}, datasets_dir=Path('.')); "
        "decode(s.read(s.samples('train')[0]), ''); "
        "open_images('digits', datasets_dir=Path('.')); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_named_set_is_opened_without_importing_the_other_kinds() -> None:
    code = (
        "import sys; from pathlib import Path; from featcache.images import open_images; "
        "open_images('digits', datasets_dir=Path('.')); "
        "assert not {'featcache.images.sources.parquet', 'featcache.images.sources.hub'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_arguments_the_set_and_folder_are_those_of_the_command_line() -> None:
    defaults = {name: one.default for name, one in inspect.signature(open_images).parameters.items()}
    request = Request()
    assert defaults["images"] == request.dataset
    assert Path(defaults["datasets_dir"]) == request.datasets_dir
    assert defaults["download"] is inspect.signature(Location.open).parameters["download"].default is True


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, featcache.images; assert not {'numpy', 'PIL', 'torch'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
