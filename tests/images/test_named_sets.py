"""Sets by name and `torchvision:NAME`: read from torchvision's layouts, downloaded through torchvision."""

from __future__ import annotations

import hashlib
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
from torchvision_layouts import LAYOUTS, OTHERS

from featcache.errors import DownloadError, MissingExtra, SourceError, UnknownName
from featcache.images import SPLITS, dataset_names, decode, describe, open_images
from featcache.images.sources.torchvision_sets import NAMED_SETS


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_every_named_set_has_a_fabricated_copy() -> None:
    assert set(LAYOUTS) == set(dataset_names()) - {"digits"}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_set_on_disk_is_read_without_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS[name](tmp_path / name, monkeypatch)
    source = open_images(name, datasets_dir=tmp_path)
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


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist", "eurosat", "svhn"])
def test_a_set_in_torchvisions_own_place_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS[name](tmp_path, monkeypatch)
    assert open_images(name, datasets_dir=tmp_path).splits()


def test_cifar10_gives_its_rows_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["cifar10"](tmp_path / "cifar10", monkeypatch)
    source = open_images("cifar10", datasets_dir=tmp_path)
    train = source.samples("train")
    assert [sample.id for sample in train] == [f"train/{row:05d}" for row in range(6)]
    assert [sample.label for sample in train] == [0, 9, 5, 1, 9, 5]
    planes = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)[0].reshape(3, 32, 32)
    assert np.array_equal(decode(source.read(train[0]), "x"), planes.transpose(1, 2, 0))
    assert source.native_size == (32, 32)


def test_stl10_pictures_are_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["stl10"](tmp_path / "stl10", monkeypatch)
    source = open_images("stl10", datasets_dir=tmp_path)
    columns_first = np.frombuffer(np.random.default_rng(0).bytes(3 * 3 * 96 * 96), np.uint8)
    first = columns_first.reshape(3, 3, 96, 96)[0].transpose(2, 1, 0)
    assert np.array_equal(decode(source.read(source.samples("train")[0]), "x"), first)
    assert [sample.label for sample in source.samples("train")] == [0, 9, 2]


def test_file_sets_read_the_encoded_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["flowers102"](tmp_path / "flowers102", monkeypatch)
    source = open_images("flowers102", datasets_dir=tmp_path)
    assert [(sample.id, sample.label) for sample in source.samples("test")] == [
        ("test/image_00005.jpg", 4),
        ("test/image_00006.jpg", 5),
    ]
    on_disk = tmp_path / "flowers102" / "flowers-102" / "jpg" / "image_00005.jpg"
    assert source.read(source.samples("test")[0]) == on_disk.read_bytes()


def test_ids_of_file_sets_are_split_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["food101"](tmp_path / "food101", monkeypatch)
    source = open_images("food101", datasets_dir=tmp_path)
    assert [sample.id for sample in source.samples("test")][:2] == ["test/apple_pie/2.jpg", "test/class_000/2.jpg"]


def test_a_damaged_cifar_batch_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["cifar10"](tmp_path / "cifar10", monkeypatch)
    bomb = b"cos\nabort\n(tR."
    (tmp_path / "cifar10" / "cifar-10-batches-py" / "one").write_bytes(bomb)
    with pytest.raises(DownloadError, match="incomplete or damaged, and the set cannot be downloaded"):
        open_images("cifar10", datasets_dir=tmp_path)


@pytest.mark.parametrize("name", ["fashion_mnist", "qmnist"])
def test_a_truncated_idx_file_is_a_source_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS[name](tmp_path / name, monkeypatch)
    images = next((tmp_path / name).rglob("*images*"))
    images.write_bytes(images.read_bytes()[:-5])
    with pytest.raises(SourceError, match="cannot be read") as caught:
        open_images(name, datasets_dir=tmp_path)
    assert caught.value.hint is not None
    assert "remove it" in caught.value.hint


def test_labels_without_a_class_are_a_source_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["kmnist"](tmp_path / "kmnist", monkeypatch)
    labels = next((tmp_path / "kmnist").rglob("train-labels*"))
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(SourceError, match="label from -1"):
        open_images("kmnist", datasets_dir=tmp_path)


def test_a_missing_class_folder_does_not_shift_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["eurosat"](tmp_path / "eurosat", monkeypatch)
    shutil.rmtree(tmp_path / "eurosat" / "eurosat" / "2750" / "Forest")
    with pytest.raises(SourceError, match="9 classes in train, 10 are published"):
        open_images("eurosat", datasets_dir=tmp_path)


def test_classes_that_differ_from_split_to_split_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OTHERS["Country211"](tmp_path / "country211", monkeypatch)
    shutil.rmtree(tmp_path / "country211" / "country211" / "valid" / "class_001")
    with pytest.raises(SourceError, match="the classes differ between splits"):
        open_images("torchvision:Country211", datasets_dir=tmp_path)


def test_a_set_of_another_size_than_published_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["eurosat"](tmp_path / "eurosat", monkeypatch)
    lines: list[str] = []
    open_images("eurosat", datasets_dir=tmp_path, report=lines.append)
    assert lines == ["eurosat: 10 images in train, 27,000 are published"]


@pytest.mark.parametrize(
    "name", ["cifar10", "mnist", "food101", "svhn", "torchvision:usps", "torchvision:semeion", "torchvision:country211"]
)
def test_no_network_is_a_download_error_with_alternatives(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[str] = []
    with pytest.raises(DownloadError, match=f"{name}: cannot be downloaded: .*no network in tests") as caught:
        open_images(name, datasets_dir=tmp_path, report=lines.append)
    assert "\n" not in caught.value.message
    hint = caught.value.hint or ""
    folder = tmp_path / name.removeprefix("torchvision:")
    assert str(folder) in hint
    assert "folder or zip" in hint
    assert "`digits` needs no download" in hint
    assert lines == [f"downloading {name} into {folder}"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["cifar10", "torchvision:Country211"])
def test_a_set_that_must_not_be_downloaded_is_not(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[object] = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *words, **_: requests.append(words))
    with pytest.raises(DownloadError, match=f"{name.lower()} is not in"):
        open_images(name, datasets_dir=tmp_path, download=False)
    assert (requests, list(tmp_path.iterdir())) == ([], [])


class _Server:
    """Replaces torchvision's downloads: returns prepared archives, or fails."""

    def __init__(self, archives: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        self.archives = archives
        self.requests: list[str] = []
        monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, max_hops: url)
        monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", self._retrieve)

    def _retrieve(self, url: str, filename: str, chunk_size: int = 0) -> None:
        self.requests.append(url)
        print("noise of a download")
        Path(filename).write_bytes(self.archives[url.rpartition("/")[2]])


def _pack(folder: Path, path: Path) -> bytes:
    with tarfile.open(path, "w:gz") as archive:
        for entry in sorted(folder.iterdir()):
            archive.add(entry, entry.name)
    return path.read_bytes()


@pytest.fixture
def cifar_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Server:
    from torchvision.datasets import CIFAR10

    LAYOUTS["cifar10"](tmp_path / "made", monkeypatch)
    archive = _pack(tmp_path / "made", tmp_path / "made.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    return _Server({"cifar-10-python.tar.gz": archive}, monkeypatch)


def test_a_download_is_moved_into_place_and_not_repeated(
    cifar_server: _Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        source = open_images("cifar10", datasets_dir=tmp_path / "sets")
        assert len(source.samples("train")) == 6
    assert len(cifar_server.requests) == 1
    assert not (tmp_path / "sets" / "cifar10" / ".download").exists()
    assert (tmp_path / "sets" / "cifar10" / "cifar-10-batches-py" / "one").exists()
    assert capsys.readouterr().out == ""


def test_a_download_that_does_not_match_its_digest_is_refused(cifar_server: _Server, tmp_path: Path) -> None:
    cifar_server.archives = {"cifar-10-python.tar.gz": b"something else"}
    with pytest.raises(DownloadError, match="corrupted"):
        open_images("cifar10", datasets_dir=tmp_path / "sets")
    assert not (tmp_path / "sets" / "cifar10" / "cifar-10-batches-py").exists()


def test_an_archive_put_in_place_by_hand_needs_no_network(cifar_server: _Server, tmp_path: Path) -> None:
    archive = cifar_server.archives.pop("cifar-10-python.tar.gz")
    write_folder(tmp_path / "sets" / "cifar10", {"cifar-10-python.tar.gz": archive})
    assert open_images("cifar10", datasets_dir=tmp_path / "sets").splits() == ("train", "test")
    assert cifar_server.requests == []
    assert (tmp_path / "sets" / "cifar10" / "cifar-10-python.tar.gz").read_bytes() == archive


def test_a_damaged_copy_is_replaced_by_a_download(cifar_server: _Server, tmp_path: Path) -> None:
    write_folder(tmp_path / "sets" / "cifar10" / "cifar-10-batches-py", {"one": b"damaged", "mine.txt": b"kept"})
    assert open_images("cifar10", datasets_dir=tmp_path / "sets").splits() == ("train", "test")
    assert (tmp_path / "sets" / "cifar10" / "cifar-10-batches-py" / "mine.txt").read_bytes() == b"kept"


def test_the_rest_of_an_interrupted_download_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # torchvision takes the folder of EuroSAT for complete as soon as it exists.
    LAYOUTS["eurosat"](tmp_path / "eurosat" / ".download", monkeypatch)
    with pytest.raises(DownloadError):
        open_images("eurosat", datasets_dir=tmp_path)
    assert not (tmp_path / "eurosat" / "eurosat").exists()
    assert not (tmp_path / "eurosat" / ".download").exists()


def test_files_put_in_place_after_a_failed_download_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError):
        open_images("flowers102", datasets_dir=tmp_path)
    LAYOUTS["flowers102"](tmp_path / "flowers102", monkeypatch)
    assert open_images("flowers102", datasets_dir=tmp_path).splits() == SPLITS


def test_only_whole_archives_with_a_digest_survive_an_interruption(tmp_path: Path) -> None:
    for name in ("eurosat", "torchvision:usps"):
        folder = tmp_path / name.removeprefix("torchvision:")
        write_folder(folder / ".download" / "x", {"set.tar.gz": b"part", "images/1.jpg": b"part"})
        with pytest.raises(DownloadError):
            open_images(name, datasets_dir=tmp_path)
    assert (tmp_path / "eurosat" / ".download" / "x" / "set.tar.gz").exists()
    assert not (tmp_path / "eurosat" / ".download" / "x" / "images").exists()
    assert not (tmp_path / "usps" / ".download").exists()


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
        open_images("flowers102", datasets_dir=tmp_path)
    assert caught.value.hint == "pip install 'featcache[matlab]'"


def test_a_server_that_refuses_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.HTTPError("https://here/set.zip", 403, "Forbidden", Message(), None)

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(DownloadError, match=r"the server answered 403 \(Forbidden\) for https://here"):
        open_images("svhn", datasets_dir=tmp_path)


def test_a_folder_that_cannot_be_written_is_a_download_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot be used"):
        open_images("cifar10", datasets_dir=tmp_path / "file")


def test_an_archive_on_another_file_system_is_copied(
    cifar_server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    archive = cifar_server.archives.pop("cifar-10-python.tar.gz")
    write_folder(tmp_path / "sets" / "cifar10", {"cifar-10-python.tar.gz": archive})
    assert open_images("cifar10", datasets_dir=tmp_path / "sets").splits() == ("train", "test")


def test_a_download_without_usable_files_is_an_error(
    cifar_server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.images.acquisition.move_up", lambda staging, root: None)
    with pytest.raises(DownloadError, match="cannot find"):
        open_images("cifar10", datasets_dir=tmp_path / "sets")


def test_an_archive_with_paths_outside_of_its_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import Country211

    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../../../escaped"))
    evil = (tmp_path / "evil.tar.gz").read_bytes()
    monkeypatch.setattr(Country211, "_MD5", hashlib.md5(evil).hexdigest())
    server = _Server({"country211.tgz": evil}, monkeypatch)
    with pytest.raises(DownloadError, match="escaped"):
        open_images("torchvision:Country211", datasets_dir=tmp_path / "a" / "sets")
    assert server.requests == [Country211._URL]
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
        open_images("cifar10", datasets_dir=tmp_path / str(terminal), report=lambda line: None)
        drawn[terminal] = screen.getvalue()
    assert drawn == {True: "noise of a download\n", False: ""}


def test_a_class_of_arrays_gives_its_rows_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OTHERS["USPS"](tmp_path / "usps", monkeypatch)
    source = open_images("torchvision:USPS", datasets_dir=tmp_path)
    assert (source.origin, source.name) == ("torchvision:usps", "torchvision-usps")
    assert [(sample.id, sample.label) for sample in source.samples("test")] == [
        ("test/00000", 0),
        ("test/00001", 9),
        ("test/00002", 3),
    ]
    assert (source.splits(), source.native_size) == (("train", "test"), (16, 16))
    assert source.classes == tuple(str(number) for number in range(10))
    first = np.random.default_rng(0).uniform(-1, 1, (3, 256))[0].reshape(16, 16)
    shown = source.read(source.samples("train")[0])
    assert np.allclose(shown, (first + 1) / 2 * 255, atol=1.1)


def test_a_class_of_files_gives_its_encoded_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OTHERS["Country211"](tmp_path / "country211", monkeypatch)
    source = open_images("torchvision:country211", datasets_dir=tmp_path)
    # The split valid of torchvision is val here.
    assert source.splits() == SPLITS
    assert source.classes == ("class_000", "class_001", "class_002")
    sample = source.samples("val")[2]
    assert (sample.id, sample.label) == ("val/class_002/1.jpg", 2)
    on_disk = tmp_path / "country211" / "country211" / "valid" / "class_002" / "1.jpg"
    assert source.read(sample) == on_disk.read_bytes()


def test_a_class_without_splits_is_all_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OTHERS["SEMEION"](tmp_path, monkeypatch)
    source = open_images("torchvision:Semeion", datasets_dir=tmp_path)
    assert source.splits() == ("train",)
    assert [sample.label for sample in source.samples("train")] == [0, 9, 4]


def test_the_case_of_a_class_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OTHERS["USPS"](tmp_path / "usps", monkeypatch)
    assert {open_images(f"torchvision:{name}", datasets_dir=tmp_path).origin for name in ("USPS", "usps", "Usps")} == {
        "torchvision:usps"
    }


def test_a_class_that_has_a_name_is_the_named_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["food101"](tmp_path / "food101", monkeypatch)
    assert open_images("torchvision:Food101", datasets_dir=tmp_path).origin == "food101"
    with pytest.raises(SourceError, match="is the class of 3 data sets") as caught:
        open_images("torchvision:EMNIST", datasets_dir=tmp_path)
    assert "emnist_letters" in (caught.value.hint or "")


def test_a_class_is_downloaded_into_place_and_not_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OTHERS["USPS"](tmp_path / "made", monkeypatch)
    archives = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    table = {"train": "usps.bz2", "test": "usps.t.bz2"}
    tables = {split: [f"https://here/{n}", n, hashlib.md5(archives[n]).hexdigest()] for split, n in table.items()}
    monkeypatch.setattr("torchvision.datasets.USPS.split_list", tables)
    server = _Server(archives, monkeypatch)
    for _ in range(2):
        assert len(open_images("torchvision:USPS", datasets_dir=tmp_path / "sets").samples("train")) == 3
    assert server.requests == ["https://here/usps.bz2", "https://here/usps.t.bz2"]
    assert {path.name for path in (tmp_path / "sets" / "usps").iterdir()} - {".lock"} == set(archives)


def test_qmnists_class_is_the_first_of_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["qmnist"](tmp_path / "qmnist", monkeypatch)
    source = open_images("qmnist", datasets_dir=tmp_path)
    assert [sample.label for sample in source.samples("test")] == [0, 8, 6]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("GTSRB", '{"train": torchvision.datasets.GTSRB("DIR", split="train", download=True), "test": ...}'),
        ("Imagenette", '{"train": torchvision.datasets.Imagenette("DIR", split="train", download=True), "val": ...}'),
        ("Caltech101", '{"train": torchvision.datasets.Caltech101("DIR", download=True)}'),
        ("LFWPeople", '{"train": torchvision.datasets.LFWPeople("DIR", split="train", download=True), "test": ...}'),
        ("Kinetics", '{"train": torchvision.datasets.Kinetics(...)}'),
        ("VOCDetection", '{"train": torchvision.datasets.VOCDetection("DIR", download=True)}'),
    ],
)
def test_a_class_without_public_images_is_refused_with_two_alternatives(name: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"torchvision:{name} cannot be opened by its name") as caught:
        open_images(f"torchvision:{name.lower()}", datasets_dir=tmp_path)
    hint = caught.value.hint or ""
    assert "hf:NAME" in hint
    assert f"featcache.extract({line}, ...)".replace("DIR", str(tmp_path)) in hint
    # Nothing was downloaded or searched for.
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["FakeData", "ImageFolder", "VisionDataset", "CocoDetection", "LSUN", "wrap_dataset_for_transforms_v2"]
)
def test_a_class_that_torchvision_does_not_download_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="torchvision does not download it") as caught:
        open_images(f"torchvision:{name}", datasets_dir=tmp_path)
    assert "folder or archive" in (caught.value.hint or "")


def test_an_unknown_class_offers_the_nearest(tmp_path: Path) -> None:
    for name, near in (("USP", "did you mean USPS"), ("contry211", "did you mean Country211"), ("", "such as")):
        with pytest.raises(UnknownName, match=f"unknown data set of torchvision '{name.lower()}'") as caught:
            open_images(f"torchvision:{name}", datasets_dir=tmp_path)
        assert near in (caught.value.hint or "")
