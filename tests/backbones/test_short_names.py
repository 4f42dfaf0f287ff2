"""Short names of backbones: every entry is held to timm."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
from torchvision import models

from featcache.backbones.zoos.names import ShortName, full_name, short_names

TABLE = short_names()


def test_every_entry_has_weights_in_timm() -> None:
    known = set(timm.list_pretrained())
    assert [entry.timm for entry in TABLE if entry.timm not in known] == []


def test_names_are_sorted_and_different() -> None:
    names = [entry.name for entry in TABLE]
    assert names == sorted(set(names))
    assert len({entry.timm for entry in TABLE}) == len(TABLE)


def test_no_short_name_hides_another_backbone() -> None:
    taken = {*models.list_models(), *timm.list_models(), "pixels"}
    # timm's own network of this name needs its prefix, so nothing is hidden.
    assert {entry.name for entry in TABLE} & taken == {"resnet50_clip"}
    assert not [entry.name for entry in TABLE if ":" in entry.name]


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
def test_licences_are_those_that_timm_states(entry: ShortName) -> None:
    assert timm.get_pretrained_cfg(entry.timm).license == entry.licence


@pytest.mark.parametrize("entry", [entry for entry in TABLE if "OpenAI" in entry.about], ids=lambda entry: entry.name)
def test_openais_vits_are_the_ones_with_their_own_activation(entry: ShortName) -> None:
    vits = "vit_" in entry.timm
    assert ("quickgelu" in entry.timm) == vits


@pytest.mark.parametrize("entry", [entry for entry in TABLE if " at " in entry.about], ids=lambda entry: entry.name)
def test_the_size_that_is_named_is_that_of_the_weights(entry: ShortName) -> None:
    size = timm.get_pretrained_cfg(entry.timm).input_size[-1]
    assert f"at {size}" in entry.about


@pytest.mark.parametrize("entry", [entry for entry in TABLE if "dinov3" in entry.name], ids=lambda entry: entry.name)
def test_dinov3_comes_from_timms_own_copies(entry: ShortName) -> None:
    assert timm.get_pretrained_cfg(entry.timm).hf_hub_id == f"timm/{entry.timm}"
    assert not entry.gated


def test_a_short_name_becomes_timms() -> None:
    assert full_name("dinov2_vits14") == "timm:vit_small_patch14_dinov2.lvd142m"
    assert full_name("clip_vitb32") == "timm:vit_base_patch32_clip_quickgelu_224.openai"


@pytest.mark.parametrize("name", ["vgg16", "timm:resnet50_clip", "hf:facebook/dinov2-small", "pixels", ""])
def test_every_other_name_stays_as_it_is(name: str) -> None:
    assert full_name(name) == name


def test_neither_torch_nor_timm_is_loaded() -> None:
    program = (
        "import sys; from featcache.backbones.zoos.names import full_name, short_names; short_names(); full_name('x');"
        "print([name for name in ('torch', 'timm', 'transformers') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
