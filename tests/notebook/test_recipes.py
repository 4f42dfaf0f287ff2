from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from featcache.errors import InvalidOption, UnknownName
from featcache.heads.architectures import Activation
from featcache.heads.config import HeadConfig
from featcache.heads.records import Score
from featcache.notebook.recipes import InputSettings, recipe, recipe_names
from featcache.notebook.reproduction import Features, Reproduction, agreement, comparison_doubts
from featcache.sweeps.records import SweepRow, TrialResult

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Backbone, image size, normalisation, D.
PIXELS = ("pixels", 32, "half", 3072)
VGG16 = ("vgg16", None, "weights", 25088)
INCEPTION = ("inception_v3", None, "weights", 2048)


def head(hidden: str, activation: Activation = "relu", **penalties: Any) -> HeadConfig:
    return HeadConfig(
        head=f"mlp:{hidden}",
        standardize=False,
        activation=activation,
        lr=1e-3,
        head_batch_size=64,
        max_epochs=50,
        patience=5,
        min_delta=0.001,
        val_fraction=0.2,
        val_cut="random",
        val_seed=42,
        l1=penalties.get("l1", 0.0),
        weight_decay=penalties.get("weight_decay", 0.0),
        dropout=penalties.get("dropout", 0.0),
    )


# The features, the head; the notebook's accuracy, loss, epochs, minutes.
TABLE = {
    "mlp": (PIXELS, head("64,16"), (0.5021, 1.4608, 13, None)),
    "mlp-l1": (PIXELS, head("64,16", l1=1e-5), (0.4976, 1.4784, None, None)),
    "mlp-l2": (PIXELS, head("64,16", weight_decay=1e-4), (0.4950, 1.5035, 14, None)),
    "mlp-leaky": (PIXELS, head("64,16", "leaky_relu"), (0.5092, 1.4292, 11, None)),
    "mlp-dropout": (PIXELS, head("64,16", dropout=0.5), (0.4190, 1.6188, 39, None)),
    "mlp-wide": (PIXELS, head("256,64"), (0.5278, 1.4579, 9, None)),
    "mlp-best": (PIXELS, head("256,64", "leaky_relu"), (0.5250, 1.5264, 11, None)),
    "vgg16": (VGG16, head("128,64", "leaky_relu"), (0.8548, 0.7108, 6, 35)),
    "inception_v3": (INCEPTION, head("128,64", "leaky_relu"), (0.7819, 0.6332, 22, 60)),
}


def test_there_are_the_notebooks_nine_in_its_order() -> None:
    assert recipe_names() == tuple(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_is_what_the_notebook_did(name: str) -> None:
    (backbone, size, normalize, dim), settings, printed = TABLE[name]
    one = recipe(name)
    assert (one.name, one.backbone, one.feature_dim) == (name, backbone, dim)
    assert (one.input.image_size, one.input.normalize) == (size, normalize)
    assert one.head == settings
    notebook = one.notebook
    assert (notebook.accuracy, notebook.loss, notebook.epochs, notebook.minutes) == printed
    assert (one.weights is None) == (backbone == "pixels")


@pytest.mark.parametrize(("name", "size"), [("vgg16", 244), ("inception_v3", 299)])
def test_as_written_is_the_notebooks_size_and_scaling_and_nothing_else(name: str, size: int) -> None:
    one = recipe(name)
    written = one.as_written()
    assert written.input == InputSettings(image_size=size, normalize="half")
    assert dataclasses.replace(written, input=one.input) == one


def test_pixels_are_as_written_already() -> None:
    assert recipe("mlp").as_written() == recipe("mlp")


def test_an_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(UnknownName) as raised:
        recipe("mlp-wise")
    assert "mlp-wide" in str(raised.value.hint)
    assert "featcache recipes" in str(raised.value.hint)


def test_a_recipe_refuses_features_of_another_backbone() -> None:
    recipe("mlp").require_backbone("pixels")
    with pytest.raises(InvalidOption, match="of pixels for the recipe mlp, got those of vgg16"):
        recipe("mlp").require_backbone("vgg16")


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_is_plain_json(name: str) -> None:
    json_values = json.loads(json.dumps(recipe(name).to_json()))
    assert "seed" not in json_values["head"]
    assert HeadConfig.from_json(json_values["head"]) == recipe(name).head


# --- agreement ---------------------------------------------------------------------------------------------


def result(
    last: float = 0.5, *, seed: int = 0, epochs: int = 10, interrupted: bool = False, test: bool = True
) -> TrialResult:
    """The result of a head whose last epoch reached the accuracy `last` on val."""
    return TrialResult(
        seed=seed,
        val=Score(value=0.5, loss=1.25),
        last=Score(value=last, loss=1.5),
        test=Score(value=0.25, loss=2.0) if test else None,
        epochs=epochs,
        best_epoch=5,
        seconds=2.0,
        interrupted=interrupted,
    )


def features(*, weights: str | None = None, classes: tuple[str, ...] = CIFAR10, **images: int) -> Features:
    """Features of as many images as the notebook had, by default."""
    counts = {"train": 40_000, "val": 10_000, "test": 10_000} | images
    return Features(set_name="cifar10", classes=classes, images=counts, weights=weights)


def row_of(*results: TrialResult, wanted: int | None = None) -> SweepRow:
    return SweepRow(values={"recipe": "mlp"}, config=HeadConfig(), heads=results, wanted=wanted or len(results))


def reproduction(*results: TrialResult, doubts: tuple[str, ...] = ()) -> Reproduction:
    return Reproduction(recipe=recipe("mlp"), set_name="cifar10", results=results, doubts=doubts)


@pytest.mark.parametrize(
    ("accuracy", "agrees"),
    [(0.5021, True), (0.5171, True), (0.4871, True), (0.5172, False), (0.4870, False), (0.1, False), (0.9, False)],
)
def test_agreement_is_within_one_point_and_a_half_on_either_side(accuracy: float, agrees: bool) -> None:
    assert agreement(accuracy, 0.5021) is agrees
    assert reproduction(result(accuracy)).agrees is agrees


def test_agreement_is_computed_from_the_mean_of_the_seeds() -> None:
    # Each seed alone is too far away.
    low, high = result(0.48), result(0.53)
    assert (reproduction(low).agrees, reproduction(high).agrees) == (False, False)
    assert reproduction(low, high).agrees is True


def test_what_cannot_be_compared_has_no_verdict() -> None:
    assert reproduction(result(0.5021), doubts=("other weights",)).agrees is None


def test_the_notebooks_images_and_weights_leave_no_doubt() -> None:
    assert comparison_doubts(recipe("mlp"), row_of(result()), features()) == ()
    vgg = "torchvision:VGG16_Weights.IMAGENET1K_V1"
    assert comparison_doubts(recipe("vgg16"), row_of(result()), features(weights=vgg)) == ()


@pytest.mark.parametrize(
    ("row", "on", "expected"),
    [
        (row_of(result()), features(train=160, val=40), "160 train and 40 val images"),
        (row_of(result()), features(val=9_999), "40,000 train and 9,999 val images"),
        (row_of(result()), features(classes=("cat", "dog")), "other classes"),
        (row_of(result(interrupted=True)), features(), "interrupted"),
        (row_of(result(), wanted=3), features(), "interrupted"),
        (row_of(result(), TrialResult(seed=1, trouble="diverged")), features(), "1 of 2 seeds diverged"),
        (row_of(result()), features(weights="random:0"), "random:0"),
    ],
)
def test_what_differs_from_the_notebook_is_reported(row: SweepRow, on: Features, expected: str) -> None:
    (doubt,) = comparison_doubts(recipe("mlp"), row, on)
    assert expected in doubt


def test_a_weights_file_is_named_without_its_folder() -> None:
    on = features(weights="file:/a/deep/folder/vgg.safetensors")
    (doubt,) = comparison_doubts(recipe("vgg16"), row_of(result()), on)
    assert doubt.endswith(": vgg.safetensors")


def test_heads_without_a_score_are_left_out_of_the_means() -> None:
    diverged = TrialResult(seed=1, trouble="diverged")
    found = Reproduction.of(recipe("mlp"), row_of(result(0.48), diverged, result(0.5, seed=2)), features())
    assert found is not None
    assert found.seeds == (0, 2)
    assert found.last.accuracy == pytest.approx(0.49)
    assert found.agrees is None
    assert Reproduction.of(recipe("mlp"), row_of(diverged), features()) is None


def test_a_row_holds_the_means_and_every_seed() -> None:
    row = reproduction(result(0.48, epochs=10), result(0.5, seed=1, epochs=13)).to_json()
    assert list(row) == ["recipe", "val", "last", "test", "epochs", "seconds", "agrees", "seeds"]
    assert row["last"] == {"accuracy": pytest.approx(0.49), "loss": 1.5}
    assert (row["epochs"], row["seconds"]) == (11.5, 2.0)
    assert [(one["seed"], one["last"]["accuracy"], one["epochs"]) for one in row["seeds"]] == [
        (0, 0.48, 10),
        (1, 0.5, 13),
    ]


def test_one_seeds_epochs_are_a_whole_number() -> None:
    assert json.dumps(reproduction(result()).to_json()["epochs"]) == "10"


def test_a_set_without_test_images_has_no_test_score() -> None:
    row = reproduction(result(test=False)).to_json()
    assert row["test"] is None
    assert row["seeds"][0]["test"] is None
