"""Scenarios are options that check themselves, and are the same after JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_up import make_options

from featcache.benchmark.options import BenchmarkOptions, scenario, scenario_names
from featcache.errors import FeatcacheError, UnknownName
from featcache.heads.config import HeadConfig


@pytest.mark.parametrize("name", scenario_names())
def test_a_scenario_comes_back_from_json(name: str) -> None:
    one = scenario(name)
    assert one.scenario == name
    assert BenchmarkOptions.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_an_unknown_scenario_offers_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        scenario("quik")
    assert "quick" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"limit": 0}, "limit"),
        ({"epochs": 0}, "epochs"),
        ({"heads": 0}, "heads"),
        ({"sample": 0}, "sample"),
        ({"sample_epochs": 0}, "sample_epochs"),
        ({"backbone": "pixels"}, "pixels computes no network"),
        ({"dataset": 7}, "dataset"),
        ({"layers": ("a", "b")}, "expected one layer, got a, b"),
        ({"head": "knn"}, "cannot train the head knn"),
        ({"head": "ridge"}, "cannot train the head ridge"),
        ({"head": HeadConfig(head="linear", standardize=True)}, "on standardised features"),
        ({"head": "mlp:"}, "hidden sizes"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_refused_by_name(changes: dict[str, object], named: str) -> None:
    with pytest.raises(FeatcacheError, match=named):
        make_options(**changes)


def test_a_head_is_named_as_for_train_head_and_trained_on_features_as_they_are() -> None:
    head = make_options(head="mlp:64").head
    assert (head.head, head.standardize, head.lr) == ("mlp:64", False, HeadConfig.lr)


def test_every_head_is_another_one_and_trains_for_all_epochs() -> None:
    options = make_options(heads=150)
    configs = options.configs()
    assert len(set(configs)) == 150
    assert configs[0] == options.head_for(10)
    # No head stops early, because the ways are compared over the same epochs.
    assert all(config.patience >= config.max_epochs == 10 for config in configs)


def test_a_sample_is_never_larger_than_the_whole() -> None:
    assert make_options(sample=5000).sample_limit == 1000
    assert make_options(sample=None).sample_limit == 1000
    assert make_options(sample=50, limit=None).sample_limit == 50
    assert make_options(sample=None, limit=None).sample_limit is None
    assert make_options(sample_epochs=50).sampled_epochs == 10


def test_a_path_is_a_set_of_images() -> None:
    assert make_options(dataset=Path("photos")).to_json()["dataset"] == "photos"
