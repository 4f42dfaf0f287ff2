"""`why` and `verify --recompute`: whether an existing cache can be reused, and whether its rows are right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny import jpeg, random_squeezenet, write_images

from featcache.cache.reader import FeatureCache
from featcache.errors import ExtractionError, WeightsError
from featcache.extraction.recomputation import recompute
from featcache.extraction.reporting import LogReporter
from featcache.extraction.request import Request
from featcache.extraction.run import extract
from featcache.extraction.why import Why, why


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    save_file(random_squeezenet(), tmp_path / "w.safetensors")
    return Request(
        dataset=write_images(tmp_path / "pictures", train=3, test=2),
        backbone="squeezenet1_1",
        weights=str(tmp_path / "w.safetensors"),
        image_size=64,
        # In fp32 SqueezeNet rounds differently in batches of 8 and of 16.
        precision="bf16",
        data_dir=tmp_path / "data",
    )


def reason_for(request: Request) -> Why:
    return why(request, reporter=LogReporter())


def fields(reason: Why) -> list[str]:
    return [difference.field for difference in reason.nearest[0].differences]


def test_before_and_after_an_extraction(request_: Request) -> None:
    assert (reason_for(request_).state, reason_for(request_).to_compute) == ("miss", 15)
    assert not request_.features_dir.exists()
    extract(request_)
    assert (reason_for(request_).state, reason_for(request_).to_compute) == ("hit", 0)


def test_new_changed_and_missing_images_are_named(request_: Request) -> None:
    extract(request_)
    assert isinstance(request_.dataset, Path)
    (request_.dataset / "train/cat/00.jpg").write_bytes(jpeg(900))
    (request_.dataset / "train/cat/zz.jpg").write_bytes(jpeg(901))
    (request_.dataset / "test/eel/01.jpg").unlink()
    reason = reason_for(request_)
    assert (reason.state, reason.to_compute) == ("partial", 2)
    assert (reason.changed, reason.new, reason.gone) == (
        ("train/cat/00.jpg",),
        ("train/cat/zz.jpg",),
        ("test/eel/01.jpg",),
    )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dtype": "float32"}, "dtype"),
        ({"image_size": 72}, "transform.image_size"),
        ({"pool": "none"}, "layers.pre_logits.pool"),
    ],
)
def test_the_field_that_differs_is_named(change: dict[str, object], field: str, request_: Request) -> None:
    extract(request_)
    reason = reason_for(replace(request_, **change))  # type: ignore[arg-type]
    assert reason.state == "miss"
    assert field in fields(reason)


def test_one_bit_of_one_weight_is_a_miss_and_named(request_: Request, tmp_path: Path) -> None:
    extract(request_)
    data = bytearray((tmp_path / "w.safetensors").read_bytes())
    place = data.rindex(b"}") + 200
    data[place] ^= 1
    (tmp_path / "w.safetensors").write_bytes(data)
    reason = reason_for(request_)
    assert reason.state == "miss"
    assert fields(reason) == ["layers.pre_logits.weights"]


def test_rows_computed_again_are_equal(request_: Request) -> None:
    cache = FeatureCache.open(extract(request_).cache)
    again = recompute(cache, 10, seed=0, data_dir=request_.data_dir, device="cpu")
    assert (again.rows, again.equal, again.greatest) == (10, 10, 0.0)


def test_a_wrong_row_is_found(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache.open(extract(request_).cache)
    original = type(cache["train"]).gather

    def spoil(split: object, layer: str, rows: np.ndarray, view: int = 0) -> np.ndarray:
        found: np.ndarray = original(split, layer, rows, view).copy()  # type: ignore[arg-type]
        found[0, 0] += 1
        return found

    monkeypatch.setattr(type(cache["train"]), "gather", spoil)
    again = recompute(cache, 15, seed=0, data_dir=request_.data_dir, device="cpu")
    assert again.equal == 13
    assert again.greatest == pytest.approx(1.0, rel=1e-2)


def test_other_weights_are_refused(request_: Request, tmp_path: Path) -> None:
    cache = FeatureCache.open(extract(request_).cache)
    tensors = load_file(tmp_path / "w.safetensors")
    tensors["features.0.bias"] = tensors["features.0.bias"] + 1
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"layer pre_logits expected sha256 \w{12}\.\., got \w{12}\.\."):
        recompute(cache, 4, seed=0, data_dir=request_.data_dir, device="cpu")


@pytest.mark.parametrize("on_the_hub", [False, True])
def test_models_of_transformers_are_found_again(
    on_the_hub: bool, request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("a" * 40)
    name = f"hf:{write_vit(folder)}"
    if on_the_hub:
        # As if it had been downloaded: the hub's client keeps each commit in a folder with its name.
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
        name = "hf:acme/tiny"
    done = extract(replace(request_, backbone=name, weights="default", precision="fp32", image_size=64))
    with FeatureCache.open(done.cache) as cache:
        source = f"hf:acme/tiny@{'a' * 40}" if on_the_hub else f"file:{folder}"
        assert cache.provenance["weights"] == source
        assert recompute(cache, 15, seed=0, data_dir=request_.data_dir, device="cpu").relative < 1e-3


def write_vit(folder: Path) -> Path:
    """A tiny model, as transformers writes it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=8
    )
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_images_that_changed_are_refused(request_: Request) -> None:
    cache = FeatureCache.open(extract(request_).cache)
    assert isinstance(request_.dataset, Path)
    (request_.dataset / "train/cat/00.jpg").write_bytes(jpeg(900))
    with pytest.raises(ExtractionError, match=r"train/cat/00\.jpg: the image changed"):
        recompute(cache, 15, seed=0, data_dir=request_.data_dir, device="cpu")
