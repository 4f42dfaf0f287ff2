"""OpenVINO as the runner: the same features, in a cache of their own, and no telemetry."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_backbone, write_images

from featcache.backbones import load_backbone
from featcache.backbones.network import Network
from featcache.backbones.runners import openvino
from featcache.cache.query import CacheQuery, find_cache
from featcache.cache.reader import FeatureCache
from featcache.errors import InvalidOption, MissingExtra
from featcache.extraction.recomputation import recompute
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract
from featcache.images import open_images
from featcache.images.decoding import decode

pytestmark = pytest.mark.skipif(not openvino.installed(), reason="the extra openvino is not installed")


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    images = write_images(tmp_path / "pictures", train=10, test=4)
    return Request(
        dataset=images, backbone=tiny_backbone(), precision="bf16", runner="openvino", data_dir=tmp_path / "data"
    )


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    data_dir = tmp_path_factory.mktemp("data")
    return load_backbone("squeezenet1_1", weights="random:0", image_size=64, data_dir=data_dir)


def compute(
    network: Network, images: np.ndarray, precision: str = "fp32", runner: str = "openvino"
) -> dict[str, torch.Tensor]:
    program = network.on("cpu", precision, runner, batch_size=len(images))
    return {name: values.clone() for name, values in program.features(images).items()}


def least_cosine(some: np.ndarray, other: np.ndarray) -> float:
    a, b = (torch.from_numpy(np.asarray(one)).double() for one in (some, other))
    return float(torch.nn.functional.cosine_similarity(a, b).min())


def test_its_features_are_those_of_torch_in_a_cache_of_their_own(request_: Request) -> None:
    done = extract(request_, Execution(batch_size=16, segment_rows=16))
    exact = extract(replace(request_, precision="fp32", runner="eager"))
    assert done.drift is not None
    assert done.fingerprint != exact.fingerprint
    with FeatureCache.open(done.cache) as cache, FeatureCache.open(exact.cache) as other:
        assert cache.spec.runner == "openvino"
        versions = cache.provenance["versions"]
        assert isinstance(versions, Mapping) and "openvino" in versions
        assert least_cosine(cache["train"].features[:], other["train"].features[:]) > 0.9999
    # `auto` finds the cache.
    again = extract(replace(request_, runner="auto", backbone=tiny_backbone()))
    assert (again.computed, again.fingerprint) == (0, done.fingerprint)


def test_a_cache_is_verified_by_computing_it_again(request_: Request) -> None:
    done = extract(replace(request_, backbone="squeezenet1_1", weights="random:0", image_size=64))
    with FeatureCache.open(done.cache) as cache:
        found = recompute(cache, 8, seed=0, data_dir=request_.data_dir, device="cpu")
    assert (found.rows, found.equal) == (8, 8)


def test_in_fp32_it_agrees_with_torch_to_rounding(network: Network) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    assert network.on("cpu", "fp32", "openvino", batch_size=4).batch_size == 4
    exact = compute(network, images, runner="eager")
    for name, values in compute(network, images).items():
        assert torch.allclose(values, exact[name], rtol=1e-4, atol=1e-5)


def test_the_rows_of_a_batch_are_kept_when_the_next_is_computed(network: Network) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 64, 64, 3), dtype=np.uint8)
    program = network.on("cpu", "fp32", "openvino", batch_size=4)
    first = program.features(images[0])
    before = {name: values.clone() for name, values in first.items()}
    program.features(images[1])
    assert all(torch.equal(values, before[name]) for name, values in first.items())


def test_several_layers_come_out_under_their_names(tmp_path: Path) -> None:
    network = load_backbone(
        "resnet18", weights="random:0", layers=("layer1", "pre_logits"), image_size=64, data_dir=tmp_path
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    exact, found = compute(network, images, runner="eager"), compute(network, images, "bf16")
    assert list(found) == list(exact) == ["layer1", "pre_logits"]
    for name, values in found.items():
        assert least_cosine(values.numpy(), exact[name].numpy()) > 0.999


@pytest.mark.parametrize(("name", "size", "least"), [("vgg16", 96, 0.9999), ("inception_v3", 139, 0.9994)])
def test_bf16_keeps_the_stem_of_real_networks(
    name: str, size: int, least: float, cifar_zip: Path, vgg_weights: Path, inception_weights: Path, tmp_path: Path
) -> None:
    weights = {"vgg16": vgg_weights, "inception_v3": inception_weights}[name]
    network = load_backbone(name, weights=weights, image_size=size, data_dir=tmp_path)
    with open_images(cifar_zip, datasets_dir=tmp_path) as source:
        some = source.samples("test")[:8]
        images = np.stack([network.resize(decode(source.read(one), one.id)) for one in some])
    exact = compute(network, images, runner="eager")
    for layer, values in compute(network, images, "bf16").items():
        assert least_cosine(values.numpy(), exact[layer].numpy()) > least


def test_what_it_cannot_compute_is_refused_at_once(network: Network) -> None:
    with pytest.raises(InvalidOption, match="--device cuda"):
        network.on("cuda", "fp32", "openvino")
    with pytest.raises(InvalidOption, match="got --precision fp16"):
        network.on("cpu", "fp16", "openvino")


def test_without_the_package_the_extra_is_named(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "installed", lambda: False)
    with pytest.raises(MissingExtra) as raised:
        extract(request_)
    assert "featcache[openvino]" in str(raised.value.hint)
    assert not request_.features_dir.exists() or not list(request_.features_dir.iterdir())


def test_a_cache_is_found_without_the_package_but_not_extended(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = extract(request_)
    monkeypatch.setattr(openvino, "installed", lambda: False)
    later = replace(request_, runner="auto", backbone=tiny_backbone())
    assert extract(later).fingerprint == done.fingerprint
    Image.new("RGB", (20, 20), "red").save(Path(request_.origin) / "train" / "cat" / "new.jpg")
    with pytest.raises(MissingExtra):
        extract(replace(later, backbone=tiny_backbone()))
    assert find_cache(later.features_dir, CacheQuery()).path == done.cache


def test_ctrl_c_is_handled_after_networks_were_freed_in_any_order(tmp_path: Path) -> None:
    program = """
import gc, signal, sys
from pathlib import Path
import numpy as np
from featcache.backbones import load_backbone

networks = [
    load_backbone("squeezenet1_1", weights="random:0", image_size=size, data_dir=Path(sys.argv[1])) for size in (64, 96)
]
for one in networks:
    size = one.spec.transform.image_size
    one.on("cpu", "fp32", "openvino", batch_size=1).features(np.zeros((1, size, size, 3), np.uint8))
del one
while networks:
    del networks[0]
    gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("handled")
"""
    ran = subprocess.run([sys.executable, "-c", program, tmp_path], check=False, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "handled\n")


def test_no_telemetry_is_loaded(tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from featcache.backbones import load_backbone\n"
        "network = load_backbone('squeezenet1_1', weights='random:0', image_size=64, data_dir=Path.home())\n"
        "program = network.on('cpu', 'fp32', 'openvino', batch_size=1)\n"
        "program.features(np.zeros((1, 64, 64, 3), np.uint8))\n"
        "assert 'openvino' in sys.modules and sys.modules['openvino_telemetry'] is None\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry.')]\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run([sys.executable, "-c", program], check=True, env={"HOME": str(home), "PATH": "/usr/bin:/bin"})
    assert not list(home.rglob("*openvino*"))
