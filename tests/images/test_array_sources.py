"""Images from memory: arrays, digits, torch datasets."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from image_files import encode, pixels
from PIL import Image

from featcache.errors import ImageError, SourceError
from featcache.images import ArraySource, TorchDatasetSource, decode, digest, open_images
from featcache.images.listing import Listing


def zeros(*shape: int, dtype: str = "uint8") -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


def test_arrays_give_ids_labels_and_classes() -> None:
    source = ArraySource(zeros(3, 4, 5), [1, 0, -1], split="test")
    assert [(s.id, s.label) for s in source.samples("test")] == [
        ("test/00000", 1),
        ("test/00001", 0),
        ("test/00002", -1),
    ]
    assert source.classes == ("0", "1")
    assert source.native_size == (4, 5)


def test_arrays_without_labels_are_unlabelled() -> None:
    source = ArraySource(zeros(2, 4, 5, 3))
    assert [sample.label for sample in source.samples("train")] == [-1, -1]
    assert source.classes == ()


def test_ids_grow_wide_enough_to_stay_sorted() -> None:
    source = ArraySource(np.zeros((100_001, 1, 1), np.uint8))
    assert source.samples("train")[-1].id == "train/100000"
    assert source.samples("train")[2].id == "train/000002"


@pytest.mark.parametrize(
    ("images", "labels", "complaint", "hint"),
    [
        (zeros(2, 4, 5, dtype="float32"), None, "expected uint8 pixels, got float32", "before scaling"),
        (zeros(2, 4, 5, dtype="int64"), None, "expected uint8 pixels, got int64", None),
        (zeros(2, 3, 32, 32), None, r"expected pixels of shape .* got \(3, 32, 32\)", "channels must be last"),
        (zeros(2, 4), None, r"expected pixels of shape .* got \(4,\)", None),
        (zeros(2, 4, 5, 2), None, r"got \(4, 5, 2\)", None),
        (zeros(0, 4, 5), None, "has no images", None),
        (zeros(2, 0, 5), None, "at least one pixel", None),
        ([zeros(4, 5), zeros(4, 5, dtype="float64")], None, "image 1 of the split train", "before scaling"),
        (zeros(2, 4, 5), [0], r"expected 2 labels for the split train, got shape \(1,\)", None),
        (zeros(2, 4, 5), [{}, {}], "expected class names, whole numbers or floats", None),
        (zeros(2, 4, 5), [0, -2], r"train/00001: expected a label from -1", None),
    ],
)
def test_arrays_that_are_no_images_are_refused(images: Any, labels: Any, complaint: str, hint: str | None) -> None:
    with pytest.raises(SourceError, match=complaint) as caught:
        ArraySource(images, labels)
    assert (hint or "") in (caught.value.hint or "")


def test_labels_need_a_class() -> None:
    with pytest.raises(SourceError, match=r"label from -1 \(unlabelled\) to 0, got 1"):
        ArraySource(zeros(2, 4, 5), [0, 1], classes=["only"])


def test_a_class_must_not_be_named_twice() -> None:
    with pytest.raises(SourceError, match="class names must differ"):
        ArraySource(zeros(2, 4, 5), [0, 1], classes=["same", "same"])


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(SourceError, match="unknown split 'dev'"):
        ArraySource(zeros(2, 4, 5), split="dev")


def test_pixels_that_are_read_are_read_only() -> None:
    images = zeros(2, 4, 5)
    source = ArraySource(images)
    payload = source.read(source.samples("train")[0])
    assert isinstance(payload, np.ndarray)
    with pytest.raises(ValueError, match="read-only"):
        payload[0, 0] = 1
    images[0, 0, 0] = 1


def test_digests_of_different_shapes_differ() -> None:
    flat = np.zeros(12, np.uint8)
    shapes: Sequence[tuple[int, ...]] = [(3, 4), (4, 3), (2, 2, 3), (3, 4, 1)]
    assert len({digest(flat.reshape(shape)) for shape in shapes}) == len(shapes)
    assert len(digest(flat.reshape(3, 4))) == 32


def test_the_digest_of_an_array_is_pinned() -> None:
    """Digests find rows in old caches, so they must never change."""
    ramp = np.arange(12, dtype=np.uint8)
    assert digest(ramp.reshape(2, 2, 3)).hex().startswith("bfcef221f9058e65")
    assert digest(np.asfortranarray(ramp.reshape(2, 2, 3))) == digest(ramp.reshape(2, 2, 3))


def test_digits_are_cut_by_class(tmp_path: Path) -> None:
    source = open_images("digits", datasets_dir=tmp_path)
    counts = {split: Counter(sample.label for sample in source.samples(split)) for split in source.splits()}
    assert {split: sum(count.values()) for split, count in counts.items()} == {"train": 1442, "test": 355}
    for label in range(10):
        assert counts["test"][label] == (counts["test"][label] + counts["train"][label]) // 5
    assert source.classes == tuple("0123456789")
    assert source.native_size == (8, 8)
    assert [sample.id for sample in source.samples("test")[:3]] == ["test/00008", "test/00009", "test/00039"]


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    source = open_images("digits", datasets_dir=tmp_path)
    sample = source.samples("train")[100]
    number = int(sample.id.partition("/")[2])
    original = load_digits()
    payload = source.read(sample)
    assert isinstance(payload, np.ndarray)
    assert np.abs(payload - original.images[number] * 255 / 16).max() <= 0.5
    assert sample.label == original.target[number]


class Items:
    """A map-style dataset of the given items."""

    def __init__(self, items: Sequence[Any], **attributes: Any) -> None:
        self.items = items
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def as_picture(image: np.ndarray[Any, Any]) -> Any:
    return Image.fromarray(image)


def as_array(image: np.ndarray[Any, Any]) -> Any:
    return image


def as_tensor(image: np.ndarray[Any, Any]) -> Any:
    return torch.from_numpy(image).permute(2, 0, 1)


@pytest.mark.parametrize("kind", [as_picture, as_array, as_tensor])
@pytest.mark.parametrize("label", [1, np.int64(1), torch.tensor(1)])
def test_torch_items_of_every_kind_are_the_same_pixels(kind: Callable[[np.ndarray[Any, Any]], Any], label: Any) -> None:
    source = TorchDatasetSource(Items([(kind(pixels(n)), label) for n in range(3)]))
    assert [(s.id, s.label) for s in source.samples("train")][-1] == ("train/00002", 1)
    for number, sample in enumerate(source.samples("train")):
        assert np.array_equal(decode(source.read(sample), sample.id), pixels(number))


def test_gray_tensors_and_pictures_become_rgb() -> None:
    gray = pixels(1)[:, :, 0]
    items = [(Image.fromarray(gray), 0), (torch.from_numpy(gray), 0), (torch.from_numpy(gray)[None], 0)]
    source = TorchDatasetSource(Items(items))
    for sample in source.samples("train"):
        assert np.array_equal(decode(source.read(sample), ""), np.stack([gray] * 3, axis=2))


def test_torchs_own_subset_keeps_labels_and_classes() -> None:
    whole = Items([(pixels(n), n % 3) for n in range(9)], targets=[n % 3 for n in range(9)], classes=["a", "b", "c"])
    subset: Any = torch.utils.data.Subset(cast("Any", whole), [8, 1])
    source = open_images({"test": subset})
    assert [sample.label for sample in source.samples("test")] == [2, 1]
    assert source.classes == ("a", "b", "c")


def test_listed_labels_that_disagree_with_the_items_are_not_used() -> None:
    items = Items([(pixels(n), n % 2) for n in range(20)], targets=[0] * 20)
    source = TorchDatasetSource(items)
    assert [sample.label for sample in source.samples("train")] == [n % 2 for n in range(20)]


def test_labels_are_not_read_from_every_item_where_torchvisions_own_class_lists_them(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    for number in range(90):
        path = tmp_path / "set" / "abc"[number % 3] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(Image.fromarray(pixels(number)), "PNG"))
    read: list[str] = []

    def loader(path: str) -> Image.Image:
        read.append(path)
        return Image.open(path)

    source = open_images(ImageFolder(str(tmp_path / "set"), loader=loader))
    assert len(read) < 60
    assert [sample.label for sample in source.samples("train")] == [n // 30 for n in range(90)]


def test_a_random_transform_is_found() -> None:
    class Flipping(Items):
        generator = np.random.default_rng(0)

        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return (image[:, ::-1] if self.generator.random() < 0.5 else image), label

    with pytest.raises(SourceError, match="augments at random") as caught:
        TorchDatasetSource(Flipping([(pixels(n), 0) for n in range(30)]))
    assert "random transform" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        ((np.zeros((4, 5, 3), np.float32), 0), "expected uint8 pixels, got float32"),
        ((torch.zeros(3, 4, 5), 0), "expected uint8 pixels, got float32"),
        ((torch.zeros(5, 4, 3, dtype=torch.uint8), 0), "expected pixels of shape"),
        (("a path", 0), "expected a PIL image, an array or a tensor, got str"),
        (pixels(0), r"expected an item \(image, label\), got ndarray"),
        ({"image": 1}, r"expected an item \(image, label\), got dict"),
        ((pixels(0), "cat"), "expected a class number as label, got 'cat'"),
        ((pixels(0), [0, 1]), "expected a class number as label"),
    ],
)
def test_torch_items_that_are_no_labelled_images_are_refused(item: Any, complaint: str) -> None:
    with pytest.raises(SourceError, match=f"train/00000: {complaint}"):
        TorchDatasetSource(Items([item]))


def test_a_dataset_without_length_is_refused() -> None:
    with pytest.raises(SourceError, match="has no length"):
        TorchDatasetSource(cast("Any", iter([(pixels(0), 0)])))


def test_an_empty_dataset_is_refused() -> None:
    with pytest.raises(SourceError, match="is empty"):
        TorchDatasetSource(Items([]))


def test_classes_of_splits_are_joined_by_their_names() -> None:
    one = Items([(pixels(0), 0), (pixels(1), 1)], classes=["cat", "dog"])
    other = Items([(pixels(2), 0)], classes=["dog"])
    source = open_images({"train": one, "test": other})
    assert source.classes == ("cat", "dog")
    assert [sample.label for sample in source.samples("test")] == [1]


def test_joined_datasets_whose_numbers_differ_are_joined_by_names() -> None:
    one = Items([(pixels(0), 0), (pixels(1), 1)], classes=["b", "c"])
    other = Items([(pixels(2), 0), (pixels(3), 1), (pixels(4), 2)], classes=["a", "b", "c"])
    joined: Any = torch.utils.data.ConcatDataset([cast("Any", one), cast("Any", other)])
    cut: Any = torch.utils.data.Subset(joined, [4, 0, 2])
    for dataset, expected in ((joined, ["b", "c", "a", "b", "c"]), (cut, ["c", "b", "a"])):
        source = open_images(dataset)
        assert [source.classes[sample.label] for sample in source.samples("train")] == expected


def test_joined_datasets_of_which_one_names_its_classes_are_refused() -> None:
    one, other = Items([(pixels(0), 0)], classes=["cat"]), Items([(pixels(1), 0)])
    joined: Any = torch.utils.data.ConcatDataset([cast("Any", one), cast("Any", other)])
    with pytest.raises(SourceError, match="equal numbers may mean different classes"):
        open_images(joined)


def test_what_an_item_gives_is_the_label_whatever_the_dataset_lists() -> None:
    class Noisy(Items):
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return image, (label + 1) % 3 if index in (5, 40, 70) else label

    noisy = Noisy([(pixels(n), n % 3) for n in range(90)], targets=[n % 3 for n in range(90)], classes=["a", "b", "c"])
    expected = [(n % 3 + (n in (5, 40, 70))) % 3 for n in range(90)]
    assert [sample.label for sample in open_images(noisy).samples("train")] == expected


def test_an_item_that_cannot_be_read_is_an_image_error() -> None:
    class Broken(Items):
        def __getitem__(self, index: int) -> Any:
            if index == 12:
                raise RuntimeError("disk on fire")
            return super().__getitem__(index)

    broken = Broken([(pixels(n), 0) for n in range(30)], targets=[0] * 30)
    source = TorchDatasetSource(broken)
    sample = next(itertools.islice(source.samples("train"), 12, None))
    with pytest.raises(ImageError, match="train/00012: cannot be read: RuntimeError: disk on fire"):
        source.read(sample)


def test_the_source_itself_does_not_import_torch() -> None:
    code = (
        "import sys, numpy as np; from featcache.images import TorchDatasetSource; "
        "s = TorchDatasetSource([(np.zeros((2, 2), np.uint8), 0)]); s.read(s.samples('train')[0]); "
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_picture_that_cannot_be_loaded_is_an_image_error() -> None:
    whole = encode(Image.fromarray(pixels(1)), "BMP")

    class Lazy(Items):
        def __getitem__(self, index: int) -> Any:
            return Image.open(io.BytesIO(whole[:-20])), 0

    with pytest.raises(ImageError, match="train/00000: image file is truncated"):
        TorchDatasetSource(Lazy([None], targets=[0]))


def test_premultiplied_alpha_is_undone() -> None:
    half = Image.frombytes("RGBa", (2, 1), bytes([64, 32, 0, 128, 10, 20, 30, 255]))
    source = TorchDatasetSource(Items([(half, 0)]))
    found = decode(source.read(source.samples("train")[0]), "x")
    assert found.tolist() == [[[127, 63, 0], [10, 20, 30]]]


def test_given_class_names_do_not_replace_the_datasets_own() -> None:
    items = Items([(pixels(0), 1)], classes=["x", "y"])
    with pytest.raises(SourceError, match="names its class 'y', which is not among cat, dog"):
        TorchDatasetSource(items, classes=["cat", "dog"])
    unnamed = Items([(pixels(0), 1)])
    assert TorchDatasetSource(unnamed, classes=["cat", "dog"]).classes == ("cat", "dog")


def test_items_without_a_label_are_unlabelled() -> None:
    source = TorchDatasetSource(Items([(pixels(n), None) for n in range(3)]))
    assert [sample.label for sample in source.samples("train")] == [-1, -1, -1]
    assert source.classes == ()


def test_labels_that_a_target_transform_changes_are_read_from_the_items() -> None:
    items = Items([(pixels(n), 1) for n in range(12)], targets=[1] * 12, target_transform=lambda label: label)
    source = TorchDatasetSource(items)
    assert [sample.label for sample in source.samples("train")] == [1] * 12


def test_an_id_listed_twice_or_unfit_for_a_file_is_refused() -> None:
    with pytest.raises(SourceError, match="the image a is listed twice"):
        Listing.of_rows([("train", "a", -1), ("train", "a", -1)], ())
    with pytest.raises(SourceError, match="not valid UTF-8"):
        Listing.of_rows([("train", "a\0", -1)], ())
