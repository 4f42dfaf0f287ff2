"""Images are asked about, and a file is exported, with a head of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn
from trained import House

from featcache.errors import HeadError, InvalidOption
from featcache.heads import own
from featcache.inference import export_run, predict
from featcache.runs.run import Run


def two_layers(in_features: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(in_features, 6), nn.Tanh(), nn.Linear(6, outputs))


def test_a_function_has_to_be_given_where_the_run_is_used(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = house.trained(two_layers, "pixels")
    expected = predict(run, house.test_images()).outputs
    monkeypatch.setattr(own, "_GIVEN", {})
    run = Run.load(run.folder)
    with pytest.raises(HeadError, match="is not known here") as caught:
        predict(run, house.test_images())
    assert "head=two_layers" in str(caught.value.hint)
    assert np.array_equal(predict(run, house.test_images(), head=two_layers).outputs, expected)
    with pytest.raises(HeadError, match="is not known here"):
        export_run(run, tmp_path / "head.pt2", "pt2", data_dir=house.root / "data")
    exported = export_run(run, tmp_path / "head.pt2", "pt2", data_dir=house.root / "data", head=two_layers)
    assert exported.greatest_difference < 1e-5


def test_a_factory_is_refused_for_a_head_that_featcache_builds(house: House, pixel_run: Run) -> None:
    with pytest.raises(InvalidOption, match="which featcache builds"):
        predict(pixel_run, house.test_images(), head=two_layers)
