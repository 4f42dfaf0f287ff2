"""A backbone is described once; the description is used while its inputs are unchanged, and needs no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featcache.backbones import describe as descriptions
from featcache.backbones import loading
from featcache.backbones.describe import Choice, describe, open_network, read_description
from featcache.backbones.options import BackboneOptions
from featcache.backbones.pooling import Pooling
from featcache.backbones.spec import BackboneSpec, Layer, ProbeOutputs, outputs_in
from featcache.backbones.transforms import Transform
from featcache.backbones.zoos import zoo_of
from featcache.errors import WeightsError


def options(**others: Any) -> BackboneOptions:
    return BackboneOptions(**{"backbone": "squeezenet1_1", "weights": "random:0", "image_size": 64, **others})


def save_weights(path: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = zoo_of("squeezenet1_1").build("squeezenet1_1", 64).root.get_submodule("network")
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the networks that are loaded."""
    found: list[str] = []
    original = loading.load

    def record(chosen: BackboneOptions, **others: Any) -> Any:
        found.append(chosen.name)
        return original(chosen, **others)

    monkeypatch.setattr(loading, "load", record)
    return found


def test_a_second_call_loads_nothing(loads: list[str], tmp_path: Path) -> None:
    first = describe(options(), data_dir=tmp_path)
    assert describe(options(), data_dir=tmp_path).to_json() == first.to_json()
    assert loads == ["squeezenet1_1"]


@pytest.mark.parametrize(
    "others",
    [
        {"image_size": 96},
        {"layers": ("features.5",)},
        {"pool": "none"},
        {"normalize": "half"},
        {"resize": "crop"},
        {"weights": "random:1"},
        {"backbone": "squeezenet1_0"},
    ],
)
def test_other_options_are_described_anew(others: dict[str, Any], loads: list[str], tmp_path: Path) -> None:
    describe(options(), data_dir=tmp_path)
    describe(options(**others), data_dir=tmp_path)
    assert len(loads) == 2


def test_other_versions_are_described_anew(loads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(options(), data_dir=tmp_path)
    monkeypatch.setattr(descriptions, "versions", lambda: {"torch": "99"})
    describe(options(), data_dir=tmp_path)
    assert len(loads) == 2


def test_a_weights_file_that_was_written_again_is_read_again(loads: list[str], tmp_path: Path) -> None:
    path = save_weights(tmp_path / "w.pth", 1)
    first = describe(options(weights=str(path)), data_dir=tmp_path)
    stamp = path.stat()
    save_weights(path, 2)
    # Some copy tools keep the modification time of the original.
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = describe(options(weights=str(path)), data_dir=tmp_path)
    assert len(loads) == 2
    assert first.layers != second.layers


def test_different_spellings_of_a_path_are_one_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_weights(tmp_path / "w.pth", 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    choices = {
        json.dumps(Choice.of(options(weights=text)).to_json()) for text in ("w.pth", "./w.pth", str(path), "~/w.pth")
    }
    assert len(choices) == 1


def test_without_its_weights_a_description_is_not_used(tmp_path: Path) -> None:
    path = save_weights(tmp_path / "w.pth", 1)
    chosen = options(weights=str(path))
    describe(chosen, data_dir=tmp_path)
    path.unlink()
    assert read_description(chosen, data_dir=tmp_path) is None
    with pytest.raises(WeightsError):
        describe(chosen, data_dir=tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}', b"\xff\xfe"])
def test_a_description_that_cannot_be_read_is_made_again(content: bytes, loads: list[str], tmp_path: Path) -> None:
    spec = describe(options(), data_dir=tmp_path)
    (path,) = (tmp_path / "backbones").glob("*.json")
    path.write_bytes(content)
    assert describe(options(), data_dir=tmp_path).to_json() == spec.to_json()
    assert len(loads) == 2


def test_a_network_that_computes_something_else_now_is_checked_and_described_again(tmp_path: Path) -> None:
    before = describe(options(), data_dir=tmp_path)
    (path,) = (tmp_path / "backbones").glob("*.json")
    content = json.loads(path.read_text())
    content["spec"]["probe"]["sketches"]["pre_logits"][0][0] += 1.0
    path.write_text(json.dumps(content))
    network = open_network(options(), data_dir=tmp_path)
    assert network.spec.to_json() == before.to_json()
    assert describe(options(), data_dir=tmp_path).to_json() == before.to_json()


def test_in_a_read_only_folder_nothing_is_stored(loads: list[str], tmp_path: Path) -> None:
    (tmp_path / "backbones").write_text("a file where the folder would be")
    first = describe(options(), data_dir=tmp_path)
    assert describe(options(), data_dir=tmp_path).to_json() == first.to_json()
    assert len(loads) == 2


def test_a_short_name_is_replaced_by_the_full_name() -> None:
    choice = Choice.of(BackboneOptions(backbone="dinov2_vits14"))
    assert choice.backbone == "timm:vit_small_patch14_dinov2.lvd142m"


PROBE = ProbeOutputs(sketches={"a": [[1.5, -2.0], [0.0, 3.0]], "b": [[4.0], [5.0]]}, environment={"torch": "2.14"})


def a_description(**others: Any) -> BackboneSpec:
    """A network of two layers, with a value in each field that is not the default."""
    values: dict[str, Any] = {
        "name": "own",
        "layers": (
            Layer(name="a", shape=(2, 7, 3), pooling=Pooling(name="avg", positions=(2, 3)), weights="a" * 64),
            Layer(name="b", shape=(5,), pooling=Pooling(name="cls+avg", positions=(1,), prefix=5)),
        ),
        "pool": "avg",
        "transform": Transform(image_size=32, resize="crop", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        "source": "module:own",
        "arguments": {"depth": 3},
        "parameters": 12,
        "flops_per_image": 99,
        "probe": PROBE,
        "scaling": (0.5, -1.0),
        "notes": ("one",),
        "warnings": ("two", "three"),
    }
    return BackboneSpec(**{**values, **others})


@pytest.mark.parametrize("others", [{}, {"probe": None, "scaling": None, "source": None}])
def test_a_description_is_read_from_its_json(others: dict[str, Any]) -> None:
    spec = a_description(**others)
    again = BackboneSpec.from_json(spec.to_json())
    assert again == spec
    assert BackboneSpec.from_json(spec.to_json().encode()).to_json() == spec.to_json()


def test_a_description_has_the_dimensions_of_its_layers() -> None:
    spec = a_description()
    assert spec.layer_names == ("a", "b") and spec.feature_dims == {"a": 42, "b": 5}


def test_only_pixels_are_stored_as_bytes_whatever_is_requested() -> None:
    assert a_description().stores_bytes and not a_description(scaling=None).stores_bytes


@pytest.mark.parametrize(
    ("source", "own"), [("module:vgg16", True), ("file:/module:x", False), ("random:0", False), (None, False)]
)
def test_a_module_of_the_users_is_known_by_its_source(source: str | None, own: bool) -> None:
    assert a_description(source=source).is_own_module is own


def test_the_outputs_for_the_probe_images_are_read_from_a_provenance() -> None:
    stored = json.loads(json.dumps({"probe": PROBE.to_json()}))
    assert outputs_in(stored) == PROBE


@pytest.mark.parametrize(
    "provenance",
    [{}, {"probe": None}, {"probe": 3}, {"probe": {}}, {"probe": {"sketches": {"a": [["x"]]}, "environment": {}}}],
)
def test_a_provenance_without_outputs_has_none(provenance: dict[str, Any]) -> None:
    assert outputs_in(provenance) is None


def test_reading_a_description_imports_no_torch(tmp_path: Path) -> None:
    describe(options(), data_dir=tmp_path)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from featcache.backbones.describe import describe\n"
        "from featcache.backbones.options import BackboneOptions\n"
        "spec = describe(BackboneOptions(backbone='squeezenet1_1', weights='random:0', image_size=64), "
        "data_dir=Path(sys.argv[1]))\n"
        "print(spec.feature_dims, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "{'pre_logits': 512} False"
