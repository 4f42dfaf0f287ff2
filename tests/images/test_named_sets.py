"""Named sets: listed without torch, read from torchvision's layouts, downloaded through torchvision."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import write_folder
from torchvision_layouts import LAYOUTS

from featcache.errors import DownloadError, ImageError, MissingExtra, SourceError, UnknownName
from featcache.images import SPLITS, dataset_names, decode, describe, open_source
from featcache.images.sources.torchvision_sets import NAMED_SETS


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_every_named_set_has_a_fabricated_copy() -> None:
    assert set(LAYOUTS) == set(dataset_names()) - {"digits"}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_set_that_is_there_is_read_without_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LAYOUTS[name](tmp_path / name, monkeypatch)
    source = open_source(name, datasets_dir=tmp_path)
    named = describe(name)
    assert source.name == source.origin == name
    assert set(source.splits()) == set(named.sizes)
    if named.classes:
        assert source.classes == named.classes
    for split in source.splits():
        for sample in source.samples(split):
            pixels = decode(source.read(sample), sample.id)
            assert sample.id.startswith(f"{split}/")
            assert named.image_size in (None, pixels.shape[:2])


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist", "eurosat", "dtd", "svhn"])
def test_a_set_in_torchvisions_own_place_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS[name](tmp_path, monkeypatch)
    assert open_source(name, datasets_dir=tmp_path).splits()


def test_cifar10_gives_its_rows_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["cifar10"](tmp_path / "cifar10", monkeypatch)
    source = open_source("cifar10", datasets_dir=tmp_path)
    train = source.samples("train")
    assert [sample.id for sample in train] == [f"train/{row:05d}" for row in range(6)]
    assert [sample.label for sample in train] == [0, 9, 5, 1, 9, 5]
    planes = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)[0].reshape(3, 32, 32)
    assert np.array_equal(decode(source.read(train[0]), "x"), planes.transpose(1, 2, 0))
    assert source.native_size == (32, 32)


def test_stl10_pictures_stand_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["stl10"](tmp_path / "stl10", monkeypatch)
    source = open_source("stl10", datasets_dir=tmp_path)
    columns_first = np.frombuffer(np.random.default_rng(0).bytes(3 * 3 * 96 * 96), np.uint8)
    first = columns_first.reshape(3, 3, 96, 96)[0].transpose(2, 1, 0)
    assert np.array_equal(decode(source.read(source.samples("train")[0]), "x"), first)
    assert [sample.label for sample in source.samples("train")] == [0, 9, 2]


def test_file_sets_hand_out_the_encoded_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["flowers102"](tmp_path / "flowers102", monkeypatch)
    source = open_source("flowers102", datasets_dir=tmp_path)
    assert [(sample.id, sample.label) for sample in source.samples("test")] == [
        ("test/image_00005.jpg", 4),
        ("test/image_00006.jpg", 5),
    ]
    on_disk = tmp_path / "flowers102" / "flowers-102" / "jpg" / "image_00005.jpg"
    assert source.read(source.samples("test")[0]) == on_disk.read_bytes()


def test_ids_of_file_sets_are_split_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["food101"](tmp_path / "food101", monkeypatch)
    source = open_source("food101", datasets_dir=tmp_path)
    assert [sample.id for sample in source.samples("test")][:2] == ["test/apple_pie/2.jpg", "test/class_000/2.jpg"]


def test_a_damaged_cifar_batch_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["cifar10"](tmp_path / "cifar10", monkeypatch)
    bomb = b"cos\nabort\n(tR."
    (tmp_path / "cifar10" / "cifar-10-batches-py" / "one").write_bytes(bomb)
    with pytest.raises(DownloadError, match="incomplete or damaged, and the set cannot be downloaded"):
        open_source("cifar10", datasets_dir=tmp_path)


@pytest.mark.parametrize("name", ["fashion_mnist", "qmnist"])
def test_a_truncated_idx_file_is_a_source_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS[name](tmp_path / name, monkeypatch)
    images = next((tmp_path / name).rglob("*images*"))
    images.write_bytes(images.read_bytes()[:-5])
    with pytest.raises(SourceError, match="cannot be read") as caught:
        open_source(name, datasets_dir=tmp_path)
    assert caught.value.hint is not None
    assert "remove it" in caught.value.hint


def test_labels_without_a_class_are_a_source_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["kmnist"](tmp_path / "kmnist", monkeypatch)
    labels = next((tmp_path / "kmnist").rglob("train-labels*"))
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(SourceError, match="label from -1"):
        open_source("kmnist", datasets_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "folder", "complaint"),
    [
        ("country211", "country211/valid/class_007", "210 classes in val, 211 are published"),
        ("eurosat", "eurosat/2750/Forest", "9 classes in train, 10 are published"),
        ("imagenette", "imagenette2/val/n02102040", "9 classes in val, 10 are published"),
    ],
)
def test_a_missing_class_folder_does_not_shift_labels(
    name: str, folder: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LAYOUTS[name](tmp_path / name, monkeypatch)
    shutil.rmtree(tmp_path / name / folder)
    with pytest.raises(SourceError, match=complaint):
        open_source(name, datasets_dir=tmp_path)


def test_classes_that_differ_from_split_to_split_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["country211"](tmp_path / "country211", monkeypatch)
    folder = tmp_path / "country211" / "country211" / "valid"
    (folder / "class_007").rename(folder / "class_999")
    with pytest.raises(SourceError, match="the classes differ from split to split"):
        open_source("country211", datasets_dir=tmp_path)


def test_gtsrb_labels_are_the_folders_own_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["gtsrb"](tmp_path / "gtsrb", monkeypatch)
    training = tmp_path / "gtsrb" / "gtsrb" / "GTSRB" / "Training"
    (training / "00001").rename(training / "00042")
    source = open_source("gtsrb", datasets_dir=tmp_path)
    assert [(s.id, s.label) for s in source.samples("train")] == [
        ("train/00000/1.ppm", 0),
        ("train/00042/1.ppm", 42),
    ]


def test_a_set_of_another_size_than_published_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["usps"](tmp_path / "usps", monkeypatch)
    said: list[str] = []
    open_source("usps", datasets_dir=tmp_path, report=said.append)
    assert "usps: 3 images in train, 7,291 are published" in said


@pytest.mark.parametrize("name", ["cifar10", "mnist", "food101", "svhn", "usps", "semeion", "fgvc_aircraft"])
def test_no_network_is_a_download_error_with_ways_out(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    with pytest.raises(DownloadError, match=f"{name}: cannot be downloaded: .*no network in tests") as caught:
        open_source(name, datasets_dir=tmp_path, report=said.append)
    assert "\n" not in caught.value.message
    hint = caught.value.hint or ""
    assert str(tmp_path / name) in hint
    assert "folder or zip" in hint
    assert "`digits` needs no download" in hint
    assert len(said) == 1
    assert said[0].startswith(f"downloading {name} into {tmp_path / name}")
    assert capsys.readouterr().out == ""


def test_a_set_that_must_not_be_downloaded_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *words, **_: asked.append(words))
    with pytest.raises(DownloadError, match="cifar10 is not in"):
        open_source("cifar10", datasets_dir=tmp_path, download=False)
    assert (asked, list(tmp_path.iterdir())) == ([], [])


@pytest.mark.parametrize("name", ["stanford_cars", "fer2013"])
def test_a_set_that_cannot_be_downloaded_says_what_to_put_where(name: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="torchvision cannot download it") as caught:
        open_source(name, datasets_dir=tmp_path)
    assert describe(name).note in (caught.value.hint or "")


class _Server:
    """Stands in for torchvision's downloads: hands out prepared archives, or breaks off."""

    def __init__(self, archives: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        self.archives = archives
        self.asked: list[str] = []
        monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, max_hops: url)
        monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", self._retrieve)

    def _retrieve(self, url: str, filename: str, chunk_size: int = 0) -> None:
        self.asked.append(url)
        print("noise of a download")
        Path(filename).write_bytes(self.archives[url.rpartition("/")[2]])


def _packed(folder: Path, path: Path) -> bytes:
    with tarfile.open(path, "w:gz") as archive:
        for entry in sorted(folder.iterdir()):
            archive.add(entry, entry.name)
    return path.read_bytes()


@pytest.fixture
def cifar_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Server:
    import hashlib

    from torchvision.datasets import CIFAR10

    LAYOUTS["cifar10"](tmp_path / "made", monkeypatch)
    archive = _packed(tmp_path / "made", tmp_path / "made.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    return _Server({"cifar-10-python.tar.gz": archive}, monkeypatch)


def test_a_download_is_moved_into_place_and_not_repeated(
    cifar_server: _Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        source = open_source("cifar10", datasets_dir=tmp_path / "sets")
        assert len(source.samples("train")) == 6
    assert len(cifar_server.asked) == 1
    assert not (tmp_path / "sets" / "cifar10" / ".download").exists()
    assert (tmp_path / "sets" / "cifar10" / "cifar-10-batches-py" / "one").exists()
    assert capsys.readouterr().out == ""


def test_a_download_that_does_not_match_its_digest_is_refused(cifar_server: _Server, tmp_path: Path) -> None:
    cifar_server.archives = {"cifar-10-python.tar.gz": b"something else"}
    with pytest.raises(DownloadError, match="corrupted"):
        open_source("cifar10", datasets_dir=tmp_path / "sets")
    assert not (tmp_path / "sets" / "cifar10" / "cifar-10-batches-py").exists()


def test_an_archive_put_in_place_by_hand_needs_no_network(cifar_server: _Server, tmp_path: Path) -> None:
    archive = cifar_server.archives.pop("cifar-10-python.tar.gz")
    write_folder(tmp_path / "sets" / "cifar10", {"cifar-10-python.tar.gz": archive})
    assert open_source("cifar10", datasets_dir=tmp_path / "sets").splits() == ("train", "test")
    assert cifar_server.asked == []
    assert (tmp_path / "sets" / "cifar10" / "cifar-10-python.tar.gz").read_bytes() == archive


def test_a_damaged_copy_is_replaced_by_a_download(cifar_server: _Server, tmp_path: Path) -> None:
    write_folder(tmp_path / "sets" / "cifar10" / "cifar-10-batches-py", {"one": b"damaged", "mine.txt": b"kept"})
    assert open_source("cifar10", datasets_dir=tmp_path / "sets").splits() == ("train", "test")
    assert (tmp_path / "sets" / "cifar10" / "cifar-10-batches-py" / "mine.txt").read_bytes() == b"kept"


def test_what_an_interrupted_download_left_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # EuroSAT is a folder of images that torchvision takes for complete as soon as it is there.
    LAYOUTS["eurosat"](tmp_path / "eurosat" / ".download", monkeypatch)
    with pytest.raises(DownloadError):
        open_source("eurosat", datasets_dir=tmp_path)
    assert not (tmp_path / "eurosat" / "eurosat").exists()
    assert not (tmp_path / "eurosat" / ".download").exists()


def test_what_was_put_in_place_after_a_failed_download_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError):
        open_source("dtd", datasets_dir=tmp_path)
    LAYOUTS["dtd"](tmp_path / "dtd", monkeypatch)
    assert open_source("dtd", datasets_dir=tmp_path).splits() == SPLITS


def test_only_whole_archives_with_a_digest_survive_an_interruption(tmp_path: Path) -> None:
    for name in ("eurosat", "fgvc_aircraft"):
        write_folder(tmp_path / name / ".download" / "x", {"set.tar.gz": b"part", "images/1.jpg": b"part"})
        with pytest.raises(DownloadError):
            open_source(name, datasets_dir=tmp_path)
    assert (tmp_path / "eurosat" / ".download" / "x" / "set.tar.gz").exists()
    assert not (tmp_path / "eurosat" / ".download" / "x" / "images").exists()
    assert not (tmp_path / "fgvc_aircraft" / ".download").exists()


def test_describing_a_set_needs_no_torch() -> None:
    code = (
        "import sys; from featcache.images import dataset_names, describe; "
        "assert all(describe(n).sizes for n in dataset_names()); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", dataset_names())
def test_a_description_agrees_with_itself(name: str) -> None:
    named: Any = NAMED_SETS[name]
    assert set(named.sizes) <= set(SPLITS)
    assert named.classes is None or len(named.classes) == named.class_count
    assert bool(named.dataset) == (name != "digits")
    assert set(named.arguments) == (set(named.sizes) if named.dataset else set())


def test_an_unknown_set_offers_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        describe("cifar-10")
    assert "cifar10" in (caught.value.hint or "")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["flowers102"](tmp_path / "flowers102", monkeypatch)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(MissingExtra, match="flowers102 needs the package scipy") as caught:
        open_source("flowers102", datasets_dir=tmp_path)
    assert caught.value.hint == "pip install 'featcache[matlab]'"


def test_a_server_that_refuses_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.HTTPError("https://here/set.zip", 403, "Forbidden", Message(), None)

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(DownloadError, match=r"the server answered 403 \(Forbidden\) for https://here"):
        open_source("svhn", datasets_dir=tmp_path)


def test_a_folder_that_cannot_be_written_is_a_download_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot be used"):
        open_source("cifar10", datasets_dir=tmp_path / "file")


def test_an_archive_on_another_file_system_is_copied(
    cifar_server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    archive = cifar_server.archives.pop("cifar-10-python.tar.gz")
    write_folder(tmp_path / "sets" / "cifar10", {"cifar-10-python.tar.gz": archive})
    assert open_source("cifar10", datasets_dir=tmp_path / "sets").splits() == ("train", "test")


def test_a_download_that_leads_to_nothing_is_an_error(
    cifar_server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.images.sources.acquisition._move_up", lambda staging, root: None)
    with pytest.raises(DownloadError, match="does not find"):
        open_source("cifar10", datasets_dir=tmp_path / "sets")


def test_an_archive_that_climbs_out_of_its_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import FGVCAircraft

    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../../../escaped"))
    server = _Server({"fgvc-aircraft-2013b.tar.gz": (tmp_path / "evil.tar.gz").read_bytes()}, monkeypatch)
    with pytest.raises(DownloadError, match="escaped"):
        open_source("fgvc_aircraft", datasets_dir=tmp_path / "a" / "sets")
    assert server.asked == [FGVCAircraft._URL]
    assert not list(tmp_path.rglob("escaped"))
    assert tarfile.TarFile.extraction_filter is None


def test_progress_is_drawn_on_a_terminal_only(
    cifar_server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[bool, str] = {}
    for terminal in (True, False):
        screen = io.StringIO()
        monkeypatch.setattr(screen, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr(sys, "stderr", screen)
        open_source("cifar10", datasets_dir=tmp_path / str(terminal), report=lambda line: None)
        drawn[terminal] = screen.getvalue()
    assert drawn == {True: "noise of a download\n", False: ""}


def test_damaged_hdf5_files_are_source_or_image_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["pcam"](tmp_path / "pcam", monkeypatch)
    source = open_source("pcam", datasets_dir=tmp_path)
    images = next((tmp_path / "pcam").rglob("*test_x.h5"))
    images.write_bytes(b"no HDF5")
    with pytest.raises(ImageError, match="test/00000: cannot be read"):
        source.read(source.samples("test")[0])
    with pytest.raises(SourceError, match="pcam cannot be read"):
        open_source("pcam", datasets_dir=tmp_path)
