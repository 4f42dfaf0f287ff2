"""What there is: `backbones`, `datasets` and `recipes`."""

from __future__ import annotations

import pytest
from command_line import answer, complaint, featcache


def test_backbones_are_listed_by_name() -> None:
    names = answer("backbones")["backbones"]
    assert {"vgg16", "inception_v3", "resnet18", "pixels"} <= set(names)
    assert names == sorted(names)
    assert featcache("backbones").stdout.splitlines() == names


@pytest.mark.parametrize(
    ("name", "default", "others"),
    [
        ("vgg16", "avgpool", {"features.30", "classifier.3"}),
        ("inception_v3", "avgpool", {"Mixed_7a"}),
        ("pixels", "pixels", {"pixels"}),
    ],
)
def test_the_layers_of_a_backbone_are_listed_and_the_default_is_marked(
    name: str, default: str, others: set[str]
) -> None:
    said = answer("backbones", name)
    assert (said["backbone"], said["default"]) == (name, default)
    assert others <= set(said["layers"])
    assert f"{default}  (default)" in featcache("backbones", name).stdout.splitlines()


def test_an_unknown_backbone_offers_the_nearest() -> None:
    error, hint = complaint("backbones", "inceptionv3")
    assert error == "unknown backbone 'inceptionv3'"
    assert "inception_v3" in hint


def test_data_sets_are_listed_with_classes_and_sizes() -> None:
    known = {one["name"]: one for one in answer("datasets")["datasets"]}
    assert known["cifar10"]["images"] == {"train": 50_000, "test": 10_000}
    assert known["cifar10"]["classes"] == 10
    (line,) = [line for line in featcache("datasets").stdout.splitlines() if line.startswith("digits ")]
    assert "1,442 train, 355 test" in line


def test_recipes_are_listed_with_their_settings_and_the_notebooks_numbers() -> None:
    known = {one["name"]: one for one in answer("recipes")["recipes"]}
    assert len(known) == 9
    best = known["mlp-best"]
    assert (best["backbone"], best["input"]) == ("pixels", {"image_size": 32, "normalize": "half"})
    assert (best["head"]["head"], best["head"]["activation"]) == ("mlp:256,64", "leaky_relu")
    assert (best["notebook"]["accuracy"], best["notebook"]["epochs"]) == (0.5250, 11)
    (line,) = [line for line in featcache("recipes").stdout.splitlines() if line.startswith("mlp-l2 ")]
    assert "weight decay 0.0001" in line
    assert "49.50 %" in line
