"""Scenarios check their values, and are the same after JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from made_up import make_scenario

from featcache.benchmark import Scenario, scenario, scenario_names
from featcache.errors import FeatcacheError, InvalidOption, UnknownName
from featcache.heads.config import HeadConfig


@pytest.mark.parametrize("name", scenario_names())
def test_a_scenario_comes_back_from_json(name: str) -> None:
    one = scenario(name)
    assert Scenario.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert one.about


def test_an_unknown_scenario_offers_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        scenario("quik")
    assert "quick" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "changes",
    [
        {"images": 0},
        {"epochs": 0},
        {"heads": 0},
        {"sample": 0},
        {"sample_epochs": 0},
        {"backbone": "pixels"},
        {"head": HeadConfig(head="knn", standardize=True)},
        {"head": HeadConfig(head="linear", standardize=True)},
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(FeatcacheError):
        make_scenario(**changes)


def test_every_head_is_another_one_and_trains_for_all_epochs() -> None:
    configs = scenario("many-heads").configs()
    assert len(set(configs)) == 64
    assert {config.max_epochs for config in configs} == {20}
    # No head stops early, because the ways are compared over the same epochs.
    assert all(config.patience >= config.max_epochs for config in configs)
    assert configs[0] == scenario("many-heads").head_for(20)
    assert len(set(make_scenario(heads=150).configs())) == 150


def test_a_sweep_holds_no_heads_that_differ_in_their_seed_alone() -> None:
    with pytest.raises(InvalidOption, match="at most 64 heads in one sweep, got 65"):
        replace(scenario("many-heads"), heads=65)


def test_a_sample_is_never_larger_than_the_whole() -> None:
    assert make_scenario(sample=5000, sample_epochs=50).sample_images == 1000
    assert not make_scenario(sample=5000, sample_epochs=50).scaled
    assert make_scenario().scaled
    assert not make_scenario(sample=None, sample_epochs=None).scaled


def test_a_wrong_number_names_its_option() -> None:
    with pytest.raises(InvalidOption, match="sample_epochs"):
        make_scenario(sample_epochs=0)
