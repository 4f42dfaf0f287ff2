"""What there is: `backbones`, `datasets` and `recipes`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from command_line import answer, complaint, featcache

from featcache.cli.printing import print_table


def test_backbones_are_listed_with_what_they_take_give_and_cost(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(here / "torch"))
    known = {one["name"]: one for one in answer("backbones")["backbones"]}
    assert list(known) == sorted(known)
    assert known["vgg16"] == {
        "name": "vgg16",
        "image_size": 224,
        "feature_dim": 25088,
        "parameters": 14_714_688,
        "gflops": 30.69,
        "weights": "vgg16-397923af.pth",
        "weights_mb": 553.4,
        "weights_here": False,
    }
    assert (known["inception_v3"]["image_size"], known["inception_v3"]["feature_dim"]) == (299, 2048)
    assert known["pixels"] == {"name": "pixels"}
    header, _, *lines = featcache("backbones").stdout.splitlines()
    assert header.split() == ["name", "size", "features", "parameters", "GFLOPs", "weights"]
    end = lines.index("")
    assert [line.split()[0] for line in lines[:end]] == [name for name in known if "stands_for" not in known[name]]
    assert max(map(len, lines[:end])) <= 80
    # The short names stand in a table of their own.
    assert [line.split()[0] for line in lines[end + 3 :]] == [name for name in known if "stands_for" in known[name]]
    assert known["dinov2_vits14"]["stands_for"].startswith("timm:vit_small_patch14_dinov2")


def test_weights_that_were_downloaded_are_here(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(here / "torch"))
    (one,) = answer("backbones", "--like", "VGG16_bn")["backbones"]
    assert featcache("backbones", "--like", "vgg16_bn").stdout.splitlines()[-1].endswith("download 554 MB")
    file = here / "torch" / "hub" / "checkpoints" / one["weights"]
    file.parent.mkdir(parents=True)
    file.touch()
    assert answer("backbones", "vgg16_bn")["weights_here"] is True
    assert featcache("backbones", "--like", "vgg16_bn").stdout.splitlines()[-1].endswith("  here")


def test_timms_networks_are_listed_by_name() -> None:
    names = [one["name"] for one in answer("backbones", "timm:", "--like", "resnet1")["backbones"]]
    assert "timm:resnet18" in names
    assert featcache("backbones", "timm:", "--like", "resnet1").stdout.splitlines() == names


@pytest.mark.parametrize("prefix", ["hf:", "nothere:"])
def test_a_library_that_lists_no_names_is_an_error(prefix: str) -> None:
    stderr = featcache("backbones", prefix, expect=1).stderr
    assert f"unknown library that lists its names '{prefix}'" in stderr and "open_clip:, timm:" in stderr


def test_one_of_timms_is_measured() -> None:
    output = answer("backbones", "timm:resnet18")
    assert (output["feature_dim"], output["image_size"], output["default"]) == (512, 224, "pre_logits")
    assert output["source"] == "timm:timm/resnet18.a1_in1k"
    shown = featcache("backbones", "timm:resnet18").stdout
    assert "features    512 (pre_logits)" in shown and "weights     timm:timm/resnet18.a1_in1k" in shown


def test_one_backbone_is_shown_or_several_are_listed() -> None:
    assert "got both" in featcache("backbones", "vgg16", "--like", "vgg", expect=2).stderr


@pytest.mark.parametrize(
    ("name", "default", "others"),
    [
        ("vgg16", "pre_logits", {"features.30", "classifier.3"}),
        ("inception_v3", "pre_logits", {"Mixed_7a"}),
        ("pixels", "pixels", {"pixels"}),
    ],
)
def test_the_layers_of_a_backbone_are_listed_and_the_default_is_named(
    name: str, default: str, others: set[str]
) -> None:
    output = answer("backbones", name)
    assert (output["name"], output["default"]) == (name, default)
    assert others | {default} <= {layer["name"] for layer in output["layers"]}
    lines = featcache("backbones", name).stdout.splitlines()
    assert next(line for line in lines if line.startswith("features ")).endswith(f"({default})")


def test_a_layer_is_shown_with_its_type_shape_widths_and_size() -> None:
    (output,) = [layer for layer in answer("backbones", "vgg16")["layers"] if layer["name"] == "pre_logits"]
    assert output["shape"] == [512, 7, 7]
    assert (output["flat"], output["pooled"], output["megabytes"], output["usual"]) == (25088, 512, 501.76, True)
    lines = [line.split() for line in featcache("backbones", "vgg16").stdout.splitlines()]
    assert ["*", "pre_logits", "AdaptiveAvgPool2d", "512x7x7", "512", "25,088", "502"] in lines
    assert ["*", "features.30", "MaxPool2d", "512x7x7", "512", "25,088", "502"] in lines
    assert ["features.0", "Conv2d", "64x224x224", "64", "3,211,264", "64,225"] in lines


def test_an_unknown_backbone_offers_the_nearest() -> None:
    error, hint = complaint("backbones", "inceptionv3")
    assert error == "unknown backbone 'inceptionv3'"
    assert "inception_v3" in hint


def test_data_sets_are_listed_with_classes_and_sizes() -> None:
    known = {one["name"]: one for one in answer("datasets")["datasets"]}
    assert known["cifar10"]["images"] == {"train": 50_000, "test": 10_000}
    assert (known["cifar10"]["classes"], known["cifar10"]["here"], known["digits"]["here"]) == (10, False, True)
    shown = featcache("datasets").stdout.splitlines()
    assert max(map(len, shown[: len(known)])) <= 80
    lines = {line.split()[0]: line.split() for line in shown[2 : 2 + len(known)]}
    assert lines["digits"] == ["digits", "10", "1,442", "-", "355", "here"]
    assert lines["cifar10"] == ["cifar10", "10", "50,000", "-", "10,000", "download"]
    assert any(line.startswith("stl10") and line.endswith("the labelled part") for line in shown[2 + len(known) :])


def test_the_help_of_datasets_names_other_kinds() -> None:
    shown = " ".join(featcache("datasets", "--help").stdout.split())
    assert "torchvision:NAME" in shown and "hf:NAME" in shown


def test_a_data_set_that_was_downloaded_is_here(here: Path) -> None:
    def cifar10() -> bool:
        (found,) = (one["here"] for one in answer("datasets")["datasets"] if one["name"] == "cifar10")
        return bool(found)

    # What an interrupted download leaves is no data set.
    (here / "data" / "datasets" / "cifar10" / ".download").mkdir(parents=True)
    (here / "data" / "datasets" / "cifar10" / ".lock").touch()
    assert not cifar10()
    (here / "data" / "datasets" / "cifar10" / "cifar-10-batches-py").mkdir()
    assert cifar10()


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
    assert "1.5035" in line


@pytest.mark.parametrize(
    ("width", "last"),
    [(80, "notebook"), (85, "notebook"), (86, "loss"), (95, "minutes"), (108, "minutes"), (109, "remark")],
)
def test_a_narrow_terminal_is_shown_what_fits(
    width: int, last: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    header = ("name", "x" * 64, "notebook", "loss", "minutes", "remark")
    print_table([("mlp", "y", "50 %", "1.46", "60", "over an hour")], header=header, optional=3)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[-1] == last
    assert max(map(len, shown)) <= width
