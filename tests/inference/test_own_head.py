"""Prediction and export with a head that is a module of the user's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn
from trained import Workspace

from featcache.errors import HeadError, InvalidOption
from featcache.heads import own
from featcache.inference import export_run, predict
from featcache.runs.run import Run


def two_layers(in_features: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(in_features, 6), nn.Tanh(), nn.Linear(6, outputs))


def test_a_function_has_to_be_given_where_the_run_is_used(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = workspace.train(two_layers, "pixels")
    expected = predict(run, workspace.test_images()).outputs
    monkeypatch.setattr(own, "_GIVEN", {})
    run = Run.load(run.folder)
    with pytest.raises(HeadError, match="is not known here") as caught:
        predict(run, workspace.test_images())
    assert "head=two_layers" in str(caught.value.hint)
    assert np.array_equal(predict(run, workspace.test_images(), head=two_layers).outputs, expected)
    with pytest.raises(HeadError, match="is not known here"):
        export_run(run, tmp_path / "head.pt2", "pt2", data_dir=workspace.root / "data")
    exported = export_run(run, tmp_path / "head.pt2", "pt2", data_dir=workspace.root / "data", head=two_layers)
    assert exported.greatest_difference < 1e-5


def test_a_factory_is_refused_for_a_head_that_featcache_builds(workspace: Workspace, pixel_run: Run) -> None:
    with pytest.raises(InvalidOption, match="which featcache builds"):
        predict(pixel_run, workspace.test_images(), head=two_layers)
