"""Images resized on the device give bit for bit the rows of images resized on the host, in any batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import Forward, TinyNetwork, every_forward

import featcache
from featcache.backbones import load_backbone
from featcache.backbones.network import Network
from featcache.backbones.resampling import Resampler
from featcache.backbones.transforms import Transform
from featcache.backbones.zoos.modules import from_module
from featcache.errors import ExtractionError, InvalidOption
from featcache.extraction.forward import ForwardPass
from featcache.extraction.pipeline import Pipeline
from featcache.extraction.reporting import LogReporter
from featcache.extraction.request import Request
from featcache.extraction.resizing import DeviceResizing, HostResizing, Originals, resolve_resizing
from featcache.extraction.run import Execution, extract
from featcache.images import open_images

# Several of one size, and one that the device does not take: 30 x 40 is more than 8 times 12 x 12.
SIZES = [(20, 20), (14, 25), (20, 20), (25, 14), (12, 12), (30, 40), (20, 20)]


def write_mixed(root: Path, count: int = 14) -> Path:
    for number in range(count):
        folder = root / "train" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (*SIZES[number % len(SIZES)], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_mixed(tmp_path / "pictures")


def backbone(**options: Any) -> Network:
    return from_module(TinyNetwork(), name="tiny", transform=transform(**options))


def transform(**options: Any) -> Transform:
    return Transform(**({"image_size": 12} | options))


@pytest.fixture
def request_(images: Path, tmp_path: Path) -> Request:
    return Request(dataset=images, backbone=backbone(), data_dir=tmp_path / "data", precision="fp32")


def arrays(cache: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with h5py.File(cache) as file:
        file.visititems(lambda name, it: found.update({name: it[()].tobytes()}) if hasattr(it, "shape") else None)
    return found


def both(request: Request, tmp_path: Path, **execution: Any) -> tuple[dict[str, bytes], dict[str, bytes]]:
    host = extract(request, Execution(resize_on="host"))
    device = extract(replace(request, data_dir=tmp_path / "device"), Execution(resize_on="device", **execution))
    assert host.fingerprint == device.fingerprint
    return arrays(host.cache), arrays(device.cache)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"interpolation": "bicubic"},
        {"resize": "crop", "resize_size": 14},
        {"resize": "crop", "resize_size": 12, "interpolation": "bicubic"},
    ],
    ids=["squash", "bicubic", "crop", "crop bicubic"],
)
def test_a_cache_is_the_same_file_wherever_images_were_resized(
    options: dict[str, Any], request_: Request, tmp_path: Path
) -> None:
    host, device = both(replace(request_, backbone=backbone(**options)), tmp_path)
    assert host == device


@pytest.mark.parametrize("execution", [{"batch_size": 8, "workers": 1}, {"segment_rows": 3}, {"batch_size": 3}])
def test_rows_do_not_depend_on_other_images_of_the_batch(
    execution: dict[str, int], request_: Request, tmp_path: Path
) -> None:
    host, device = both(request_, tmp_path, **execution)
    assert host == device


def test_views_are_the_same_too(request_: Request, tmp_path: Path) -> None:
    host, device = both(replace(request_, views=4, backbone=backbone(resize="crop", resize_size=15)), tmp_path)
    assert host == device


def test_pixels_are_the_same_too(images: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"image_size": 12, "views": 2}
    host = featcache.extract(images, "pixels", data_dir=tmp_path / "host", resize_on="host", **options)
    device = featcache.extract(images, "pixels", data_dir=tmp_path / "device", resize_on="device", **options)
    assert arrays(host.path) == arrays(device.path)


def test_rows_are_the_same_at_any_position(images: Path) -> None:
    source = open_images(images, datasets_dir=images)
    samples = list(source.samples("train"))
    resizing = DeviceResizing(transform())
    forward = ForwardPass(program=backbone().on(), dtype="float32", batch_size=8, resizing=resizing)
    pipeline = Pipeline(source=source, backbones=[forward], workers=1)
    found: dict[int, np.ndarray] = {}
    for order in (list(range(len(samples))), list(reversed(range(len(samples)))), [5], [2, 9]):
        (rows,) = pipeline.gather([samples[row] for row in order]).rows
        values = rows.features["output"]
        for row, value in zip(order, values, strict=True):
            assert np.array_equal(found.setdefault(row, value), value)
    pipeline.close()
    source.close()


def test_a_batch_that_does_not_fit_is_halved(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = arrays(extract(request_, Execution(resize_on="host")).cache)
    refused = 0

    def scarce(forward: Forward, images: np.ndarray | torch.Tensor) -> object:
        nonlocal refused
        if len(images) > 8:
            refused += 1
            raise torch.OutOfMemoryError("out of memory")
        return forward(images)

    every_forward(monkeypatch, scarce)
    again = extract(
        replace(request_, data_dir=tmp_path / "scarce"), Execution(resize_on="device", batch_size=16, workers=1)
    )
    assert refused == 1
    assert arrays(again.cache) == expected


def test_with_a_batch_in_flight_the_rows_are_the_same(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = arrays(extract(request_).cache)
    monkeypatch.setattr("featcache.extraction.forward.in_flight", lambda device: 1)
    again = extract(replace(request_, data_dir=tmp_path / "flying"), Execution(batch_size=3))
    assert arrays(again.cache) == expected


def test_images_are_grouped_by_size_and_some_are_resized_before() -> None:
    resizing = DeviceResizing(transform(resize="crop", resize_size=14))
    prepared = [
        resizing.prepare(np.full((*size, 3), place, np.uint8), cropped=place == 2) for place, size in enumerate(SIZES)
    ]
    packed = resizing.pack(prepared)
    assert isinstance(packed, Originals) and len(packed) == 7
    places = {(group.images.shape[1:3], group.squash): group.places.tolist() for group in packed.groups}
    assert places == {
        ((20, 20), False): [0, 6],
        ((14, 25), False): [1],
        ((25, 14), False): [3],
        ((12, 12), False): [4],
        # The augmented one and the large one.
        ((12, 12), True): [2, 5],
    }


@pytest.mark.parametrize("part", [slice(0, 3), slice(2, 6), slice(6, 99), slice(0, 7)])
def test_a_part_of_a_batch_is_the_same_images(part: slice) -> None:
    resizing = DeviceResizing(transform())
    noise = np.random.default_rng(0)
    prepared = [resizing.prepare(noise.integers(0, 256, (*size, 3), dtype=np.uint8), cropped=False) for size in SIZES]
    packed = resizing.pack(prepared)
    whole, some = resizing.batch(packed, 8), resizing.batch(packed[part], 8)
    count = len(packed[part])
    assert torch.equal(some[:count], whole[:7][part])
    assert not some[count:].any()


@pytest.mark.parametrize(
    ("option", "device", "kind"),
    [
        ("auto", "cpu", HostResizing),
        ("auto", "cuda", DeviceResizing),
        ("auto", "cuda:1", DeviceResizing),
        ("auto", "mps", DeviceResizing),
        ("host", "cuda", HostResizing),
        ("device", "cpu", DeviceResizing),
    ],
)
def test_auto_is_the_device_where_that_is_a_gpu(
    option: str, device: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.extraction.resizing.agrees_with_pillow", lambda resampler: True)
    assert type(resolve_resizing(option, backbone().spec, device, LogReporter())) is kind


def test_pixels_are_resized_on_the_host_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.extraction.resizing.agrees_with_pillow", lambda resampler: True)
    pixels = load_backbone("pixels", image_size=8, data_dir=tmp_path).spec
    assert type(resolve_resizing("auto", pixels, "cuda", LogReporter())) is HostResizing
    assert type(resolve_resizing("device", pixels, "cuda", LogReporter())) is DeviceResizing


def _differing(resampler: Resampler) -> bool:
    return False


def _unable(resampler: Resampler) -> bool:
    raise NotImplementedError("no integers here")


@pytest.mark.parametrize("verdict", [_differing, _unable])
def test_a_device_that_gives_other_bytes_is_not_used(
    verdict: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("featcache.extraction.resizing.agrees_with_pillow", verdict)
    assert type(resolve_resizing("auto", backbone().spec, "cuda", LogReporter())) is HostResizing
    assert "images are resized on the host" in caplog.text
    with pytest.raises(ExtractionError, match="does not give the same bytes as Pillow"):
        resolve_resizing("device", backbone().spec, "cpu", LogReporter())


def test_an_invalid_place_to_resize_is_refused(request_: Request) -> None:
    with pytest.raises(InvalidOption, match="--resize-on auto, host or device"):
        extract(request_, Execution(resize_on="elsewhere"))  # type: ignore[arg-type]  # an invalid value, on purpose


def test_images_packed_for_the_device_are_not_for_the_host() -> None:
    resizing = DeviceResizing(transform())
    packed = resizing.pack([resizing.prepare(np.zeros((9, 9, 3), np.uint8), cropped=False)])
    with pytest.raises(TypeError, match="packed for the device"):
        HostResizing(transform()).batch(packed, 8)
