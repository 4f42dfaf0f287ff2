"""`featcache.predict`: the same predictions as at training, from the run's record alone."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from trained import CLASSES, Workspace, random_tensors, with_target_kind

import featcache
from featcache.backbones.network import Network
from featcache.cache.reader import FeatureCache
from featcache.errors import (
    CacheNotFound,
    HeadError,
    ImageError,
    InvalidOption,
    SourceError,
    UnknownName,
    WeightsError,
)
from featcache.extraction.run import Execution
from featcache.heads.metric_records import ListMetrics
from featcache.inference import Classifier, Predicted, predict
from featcache.inference.pictures import open_pictures
from featcache.runs.run import Run


def predict_test_images(workspace: Workspace, run: Run, **options: object) -> Predicted:
    """The predictions of a run for the test images."""
    return predict(run, workspace.test_images(), data_dir=workspace.root / "data", **options)  # type: ignore[arg-type]


# --- the same as at training -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        *(("pixels", head) for head in ("linear", "mlp:8", "logreg", "ridge", "centroid", "knn")),
        ("resnet18", "knn"),
    ],
)
def test_every_head_predicts_the_same_as_for_the_cached_test_images(
    workspace: Workspace, backbone: str, head: str
) -> None:
    run = workspace.train(head, backbone)
    predicted, kept = predict_test_images(workspace, run), run.predictions("test")
    assert tuple(f"test/{Path(i.path).parent.name}/{Path(i.path).name}" for i in predicted) == kept.ids
    assert np.allclose(predicted.outputs, kept.outputs, atol=1e-5)
    assert [image.label for image in predicted] == [CLASSES[row.argmax()] for row in kept.outputs]


def test_several_layers_are_joined_as_in_training(workspace: Workspace, run: Run) -> None:
    assert [layer.name for layer in run.features.layers] == ["layer2", "pre_logits"]
    assert np.allclose(predict_test_images(workspace, run).outputs, run.predictions("test").outputs, atol=1e-5)


def test_a_layer_that_the_head_does_not_read_needs_no_weights(workspace: Workspace, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    tensors = random_tensors("resnet18", 1)
    save_file(tensors, weights)
    cache = featcache.extract(
        workspace.pictures, "resnet18", layers=("layer1", "layer3"), image_size=40, weights=weights, data_dir=tmp_path
    )
    run = featcache.train_head(cache, "centroid", layers="layer1", runs_dir=tmp_path / "runs", val_fraction=0.5)
    early = {name: value for name, value in tensors.items() if name.startswith(("conv1", "bn1", "layer1"))}
    save_file(early, weights)
    assert len(predict(run, workspace.test_images(), data_dir=tmp_path)) == 12


def test_several_caches_are_joined_as_in_training(workspace: Workspace, tmp_path: Path) -> None:
    data = tmp_path / "data"
    exact = {"dtype": "float32", "precision": "fp32", "runner": "eager"}
    weights = {"squeezenet1_0": "random:1", "squeezenet1_1": "random:2"}
    deep = featcache.extract(workspace.pictures, list(weights), weights=weights, image_size=40, data_dir=data, **exact)  # type: ignore[call-overload]
    pixels = featcache.extract(workspace.pictures, "pixels", image_size=8, data_dir=data)
    run = featcache.train_head(deep[0], "ridge", beside=[pixels, deep[1]], runs_dir=tmp_path / "runs", val_fraction=0.5)
    kept = run.predictions("test")
    predicted = predict(run, workspace.test_images(), neighbours=1, data_dir=data)
    assert np.allclose(predicted.outputs, kept.outputs, atol=1e-4)
    train = workspace.pictures / "train" / "cat" / "03.png"
    (image,) = predict(run, train, neighbours=1, data_dir=data)
    assert image.neighbours[0].id == "train/cat/03.png"
    exported = featcache.inference.export_run(run, tmp_path / "head.pt2", "pt2", data_dir=data)
    assert exported.greatest_difference < 1e-5
    for weights_of in ("random:2", {"squeezenet1_1": "random:3"}, {"vgg16": "random:1"}):
        with pytest.raises((WeightsError, InvalidOption), match=r"--weights|random:3"):
            predict(run, train, weights=weights_of, data_dir=data)


def test_crops_are_made_as_in_training(workspace: Workspace) -> None:
    run = workspace.train("ridge", resize="crop", normalize="half")
    assert np.allclose(predict_test_images(workspace, run).outputs, run.predictions("test").outputs, atol=1e-5)


def test_bf16_is_used_when_it_is_requested(workspace: Workspace, run: Run) -> None:
    exact, rounded = (
        predict_test_images(workspace, run).outputs,
        predict_test_images(workspace, run, precision="bf16").outputs,
    )
    assert not np.array_equal(exact, rounded)
    assert np.allclose(exact, rounded, atol=0.05)


def test_a_run_whose_cache_is_gone_still_predicts(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    gone = replace(run, features=replace(run.features, cache=str(tmp_path / "gone.h5")))
    predicted = predict(gone, workspace.test_images(), data_dir=tmp_path)
    assert np.array_equal(predicted.outputs, predict_test_images(workspace, run).outputs)


# --- weights -----------------------------------------------------------------------------------------------


@pytest.fixture
def of_file(workspace: Workspace, tmp_path: Path) -> tuple[Run, Path]:
    """A run whose weights are in a file."""
    weights = tmp_path / "w.safetensors"
    save_file(random_tensors("resnet18", 1), weights)
    (tmp_path / "pictures").symlink_to(workspace.pictures)
    # In its own data folder: in the shared one a cache has these rows already, with another source of weights.
    return Workspace(root=tmp_path).train("centroid", weights=str(weights)), weights


def test_other_weights_are_refused_layer_by_layer(workspace: Workspace, of_file: tuple[Run, Path]) -> None:
    run, weights = of_file
    tensors = load_file(weights)
    tensors["layer4.1.bn2.bias"][3] += 1
    save_file(tensors, weights)
    with pytest.raises(WeightsError, match=r"w\.safetensors are not those .* layer pre_logits expected sha256 \w{12}"):
        predict_test_images(workspace, run)


def test_weights_may_have_moved(workspace: Workspace, of_file: tuple[Run, Path]) -> None:
    run, weights = of_file
    before = predict_test_images(workspace, run)
    moved = weights.rename(weights.with_name("moved.safetensors"))
    with pytest.raises(WeightsError, match=r"no longer at .*w\.safetensors") as caught:
        predict_test_images(workspace, run)
    assert "--weights" in str(caught.value.hint)
    assert np.array_equal(predict_test_images(workspace, run, weights=moved).outputs, before.outputs)


def test_a_run_without_a_source_of_weights_needs_the_option_weights(
    workspace: Workspace, run: Run, tmp_path: Path
) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "silent")
    config = json.loads((folder / "config.json").read_text())
    config["features"]["weights"] = None
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="silent has no record of where its weights came from") as caught:
        predict_test_images(workspace, Run.load(folder))
    assert "--weights" in str(caught.value.hint)
    assert np.array_equal(
        predict_test_images(workspace, Run.load(folder), weights="random:1").outputs,
        predict_test_images(workspace, run).outputs,
    )


def test_an_own_module_must_be_given_again(workspace: Workspace, tmp_path: Path) -> None:
    import torch
    from torch import nn

    from featcache.backbones.transforms import Transform

    class Shifted(nn.Module):
        def __init__(self, bias: float) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([bias]))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return nn.functional.avg_pool2d(images, 4).flatten(1) + self.bias

    def backbone(bias: float) -> Network:
        return featcache.from_module(Shifted(bias), name="mine", transform=Transform(image_size=16))

    cache = featcache.extract(workspace.pictures, backbone(0.5), data_dir=tmp_path)
    run = featcache.train_head(cache, "ridge", runs_dir=tmp_path / "runs", val_fraction=0.5)
    with pytest.raises(WeightsError, match="a module of your own"):
        predict_test_images(workspace, run)
    assert len(predict_test_images(workspace, run, backbone=backbone(0.5))) == 12
    with pytest.raises(WeightsError, match="layer output expected sha256"):
        predict_test_images(workspace, run, backbone=backbone(0.6))


def test_an_own_module_that_computes_something_else_now_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    from torch import nn

    from featcache.backbones.transforms import Transform

    def backbone(slope: float) -> Network:
        module = nn.Sequential(nn.AvgPool2d(4), nn.LeakyReLU(slope), nn.Flatten())
        return featcache.from_module(module, name="mine", transform=Transform(image_size=16))

    cache = featcache.extract(workspace.pictures, backbone(0.1), data_dir=tmp_path)
    run = featcache.train_head(cache, "ridge", runs_dir=tmp_path / "runs", val_fraction=0.5)
    assert len(predict_test_images(workspace, run, backbone=backbone(0.1))) == 12
    # Neither has weights by which they differ.
    with pytest.raises(WeightsError, match="mine does not compute what it computed") as caught:
        predict_test_images(workspace, run, backbone=backbone(0.2))
    assert "extract and train again" in str(caught.value.hint)


def test_a_damaged_head_is_refused(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "damaged")
    content = bytearray((folder / "head.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "head.safetensors").write_bytes(content)
    with pytest.raises(HeadError, match="expected sha256"):
        predict_test_images(workspace, Run.load(folder))


# --- which images ------------------------------------------------------------------------------------------


def test_images_folders_archives_and_arrays_give_the_same(workspace: Workspace, pixel_run: Run, tmp_path: Path) -> None:
    folder = workspace.pictures / "test" / "dog"
    with zipfile.ZipFile(tmp_path / "dogs.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    arrays = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    expected = predict_test_images(workspace, pixel_run).outputs[4:8]
    for images in (folder, str(folder), sorted(folder.iterdir()), tmp_path / "dogs.zip", arrays):
        assert np.allclose(predict(pixel_run, images).outputs, expected, atol=1e-6)
    assert np.allclose(predict(pixel_run, arrays[0]).outputs, expected[:1], atol=1e-6)
    assert predict(pixel_run, tmp_path / "dogs.zip").images[0].path == f"{tmp_path}/dogs.zip/00.png"


def test_predictions_come_in_the_order_of_the_images(workspace: Workspace, pixel_run: Run) -> None:
    dog, cat, eel = (workspace.pictures / "test" / name / "00.png" for name in ("dog", "cat", "eel"))
    predicted = predict(pixel_run, [eel, dog, cat, dog])
    assert [image.path for image in predicted] == [str(eel), str(dog), str(cat), str(dog)]
    assert np.array_equal(predicted.outputs[1], predicted.outputs[3])


def test_many_images_are_predicted_chunk_by_chunk(
    workspace: Workspace, pixel_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict_test_images(workspace, pixel_run)
    monkeypatch.setattr("featcache.inference.classifier.CHUNK", 5)
    pieces = predict_test_images(workspace, pixel_run)
    assert [image.path for image in pieces] == [image.path for image in whole]
    assert np.array_equal(pieces.outputs, whole.outputs)


def test_a_file_that_is_no_image_is_an_error_that_names_it(
    workspace: Workspace, pixel_run: Run, tmp_path: Path
) -> None:
    (tmp_path / "note.png").write_text("no image")
    with pytest.raises(ImageError, match=r"note\.png: not an image"):
        predict(pixel_run, [workspace.test_images()[0], tmp_path / "note.png"])
    with pytest.raises(ImageError, match=r"gone\.png: cannot be read"):
        predict(pixel_run, tmp_path / "gone.png")


def test_a_file_that_is_no_image_can_be_skipped(workspace: Workspace, pixel_run: Run, tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no image")
    first, second = workspace.test_images()[:2]
    predicted = predict(pixel_run, [first, tmp_path / "note.png", second], on_error="skip")
    assert [image.path for image in predicted] == [str(first), str(second)]
    assert predicted.outputs.shape == (2, 3)
    assert [Path(one.path).name for one in predicted.unread] == ["note.png"]
    assert predicted.to_json()["skipped"][0]["reason"].endswith("as text b'no image')")
    with pytest.raises(SourceError, match="none of 1 images could be read"):
        predict(pixel_run, tmp_path / "note.png", on_error="skip")


def test_a_folder_without_images_is_an_error(pixel_run: Run, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no images found"):
        predict(pixel_run, tmp_path)
    with pytest.raises(InvalidOption, match="expected images, got none"):
        predict(pixel_run, [])


# --- predictions -------------------------------------------------------------------------------------------


def test_the_first_classes_are_named_best_first(workspace: Workspace, run: Run) -> None:
    predicted = predict_test_images(workspace, run, top=2)
    for image, row in zip(predicted, predicted.outputs, strict=True):
        assert [guess.label for guess in image.top] == [CLASSES[number] for number in np.argsort(-row)[:2]]
        assert [guess.probability for guess in image.top] == sorted(row.tolist(), reverse=True)[:2]
    assert all(len(image.top) == 3 for image in predict_test_images(workspace, run, top=99))
    assert np.allclose(predicted.outputs.sum(axis=1), 1.0, atol=1e-6)


def test_several_classes_are_predicted_above_their_thresholds(
    workspace: Workspace, pixel_run: Run, tmp_path: Path
) -> None:
    run = with_target_kind(pixel_run, tmp_path / "several", "lists")
    measured = run.metrics("val")
    assert isinstance(measured, ListMetrics)
    predicted = predict_test_images(workspace, run, neighbours=1)
    single = np.log(predict_test_images(workspace, pixel_run).outputs)
    # The logits, which equal the logarithm of the softmax up to a constant per image.
    logits = np.log(predicted.outputs / (1 - predicted.outputs))
    assert np.allclose(logits - logits[:, :1], single - single[:, :1], atol=1e-3)
    for image, row in zip(predicted, predicted.outputs, strict=True):
        assert image.labels is not None
        wanted = {name for name, p, least in zip(CLASSES, row, measured.thresholds, strict=True) if p >= least}
        assert {guess.label for guess in image.labels} == wanted
        assert list(image.to_json()) == ["path", "labels", "top", "neighbours"]
        assert image.neighbours[0].label in CLASSES
    assert len({len(image.labels or ()) for image in predicted}) > 1


def test_numbers_have_the_names_of_their_columns(workspace: Workspace, pixel_run: Run, tmp_path: Path) -> None:
    predicted = predict_test_images(
        workspace, with_target_kind(pixel_run, tmp_path / "numbers", "numbers"), neighbours=1
    )
    assert predicted.target.kind == "numbers"
    for image, row in zip(predicted, predicted.outputs, strict=True):
        assert image.to_json()["values"] == dict(zip(CLASSES, row.tolist(), strict=True))
        assert list(image.to_json()) == ["path", "values", "neighbours"]
    assert not np.allclose(predicted.outputs.sum(axis=1), 1.0)


def test_the_nearest_train_images_are_those_of_the_greatest_cosine(workspace: Workspace, run: Run) -> None:
    predicted = predict_test_images(workspace, run, neighbours=3)
    with FeatureCache.open(run.features.cache) as cache:
        train, ids = cache["train"], cache["train"].ids
        known = np.concatenate([np.asarray(train.layer(layer.name)) for layer in run.features.layers], axis=1)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    source, samples = open_pictures(workspace.test_images())
    classifier = Classifier.of(run, device="cpu")
    (outputs_,) = classifier.predict_chunks(source, samples, Execution(device="cpu"))
    for image, row in zip(predicted, outputs_.features, strict=True):
        cosines = known @ (row / np.linalg.norm(row))
        best = np.argsort(-cosines)[:3]
        assert [near.id for near in image.neighbours] == [ids[number] for number in best]
        assert [near.similarity for near in image.neighbours] == pytest.approx(cosines[best], abs=1e-5)
        assert all(near.label == near.id.split("/")[1] for near in image.neighbours)


def test_a_train_image_is_its_own_nearest_one(workspace: Workspace, pixel_run: Run) -> None:
    image = workspace.pictures / "train" / "dog" / "05.png"
    (predicted,) = predict(pixel_run, image, neighbours=1, data_dir=workspace.root / "data")
    (near,) = predicted.neighbours
    assert (near.id, near.label) == ("train/dog/05.png", "dog")
    assert near.similarity == pytest.approx(1.0, abs=1e-5)


def test_neighbours_need_the_cache(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    gone = replace(run, features=replace(run.features, cache=str(tmp_path / "gone.h5")))
    with pytest.raises(CacheNotFound, match="the cache the head was trained on does not exist any more") as caught:
        predict(gone, workspace.test_images(), neighbours=1, data_dir=tmp_path)
    assert "--neighbours" in str(caught.value.hint)
    # A cache at another path, with other features.
    other = workspace.train("centroid", "pixels").features.cache
    replaced = replace(run, features=replace(run.features, cache=other))
    with pytest.raises(CacheNotFound):
        predict(replaced, workspace.test_images(), neighbours=1, data_dir=tmp_path)


def test_a_cache_that_moved_with_its_data_folder_is_found(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    shutil.copytree(workspace.root / "data" / "features", tmp_path / "features")
    moved = replace(run, features=replace(run.features, cache=f"/gone/{Path(run.features.cache).name}"))
    (image,) = predict(moved, workspace.test_images()[0], neighbours=1, data_dir=tmp_path)
    assert len(image.neighbours) == 1


# --- which run ---------------------------------------------------------------------------------------------


def test_a_run_is_found_by_name_beginning_path_or_as_the_latest(workspace: Workspace) -> None:
    run = workspace.train("centroid", "pixels")
    for name in (run.folder, str(run.folder), run.folder.name, run.folder.name[:-2], "latest"):
        predicted = predict(name, workspace.test_images()[0], runs_dir=workspace.root / "runs")
        assert Path(predicted.run).name == run.folder.name


def test_a_missing_run_is_an_error_with_suggestions(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    with pytest.raises(UnknownName) as caught:
        predict(run.folder.name.replace("resnet", "resnte"), workspace.test_images(), runs_dir=workspace.root / "runs")
    assert run.folder.name in str(caught.value.hint)
    with pytest.raises(HeadError, match="begin with '20'"):
        workspace.train("centroid", "pixels")
        predict("20", workspace.test_images(), runs_dir=workspace.root / "runs")
    with pytest.raises(HeadError, match="there are no runs"):
        predict("latest", workspace.test_images(), runs_dir=tmp_path)


@pytest.mark.parametrize("options", [{"top": 0}, {"neighbours": -1}, {"on_error": "ignore"}, {"batch_size": 0}])
def test_invalid_options_are_refused(workspace: Workspace, pixel_run: Run, options: dict[str, object]) -> None:
    with pytest.raises(InvalidOption):
        predict_test_images(workspace, pixel_run, **options)


def test_real_weights_and_images_give_the_predictions_of_training(
    vgg_weights: Path, cifar_zip: Path, tmp_path: Path
) -> None:
    cache = featcache.extract(
        cifar_zip,
        "vgg16",
        weights=vgg_weights,
        image_size=64,
        dtype="float32",
        precision="fp32",
        runner="eager",
        limit=20,
        data_dir=tmp_path,
    )
    run = featcache.train_head(cache, "centroid", val_fraction=0.5, val_seed=3, runs_dir=tmp_path / "runs")
    kept = run.predictions("test")
    with zipfile.ZipFile(cifar_zip) as archive:
        paths = [Path(archive.extract(f"cifar10/{name}", tmp_path)) for name in kept.ids]
    assert np.allclose(predict(run, paths).outputs, kept.outputs, atol=1e-4)
