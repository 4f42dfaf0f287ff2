"""`benchmarks/gpu.py` runs from a checkout that is not installed, with what extraction needs and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmark_files import BENCHMARKS

_NOT_NEEDED = (
    "altair", "datasets", "jinja2", "lightning", "onnx", "pytorch_lightning", "rich", "scipy", "sklearn", "timm",
    "torchmetrics", "typer", "vl_convert",
)  # fmt: skip

# Runs a script as if these packages, and featcache itself, were not installed.
_RUN = f"""
import runpy, sys
from pathlib import Path

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {_NOT_NEEDED!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path[:] = [folder for folder in sys.path if folder and not Path(folder, "featcache").is_dir()]
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


_BREAK = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS.parent)!r})
from featcache.backbones import loading
from featcache.backbones.resampling import Resampler

def fail(*images, **options):
    raise NotImplementedError("no integers here")

Resampler.resize = loading.load = fail
"""
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_the_gpu_script_runs_on_a_cpu_with_what_extraction_needs_alone(tmp_path: Path) -> None:
    written = tmp_path / "gpu.json"
    words = [str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *words], cwd=tmp_path, env=_ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(written.read_text())
    assert all(part["machine"]["versions"]["torch"] and part["quick"] for part in result.values())
    compared = result["features"]["squeezenet1_1"]
    assert compared["fp32"]["least_cosine"] > 0.99999
    assert 0.99 < compared["bf16"]["least_cosine"] < 1
    assert result["resize"]["cases"] == result["resize"]["equal"] > 20
    for size in ("32x32", "48x64"):
        speed = result["speed"]["squeezenet1_1"][size]
        assert speed["images_per_s"] > 0
        assert speed["bound"] in ("decode", "compute")
    assert "not_measured" in result["memory"]


def test_parts_that_fail_are_reported_and_the_others_run(tmp_path: Path) -> None:
    words = [str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", _BREAK + _RUN, *words], cwd=tmp_path, env=_ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert all(f"gpu:{part} failed" in done.stderr for part in ("features", "resize", "speed"))
    assert "NotImplementedError: no integers here" in done.stderr
    assert list(json.loads((tmp_path / "gpu.json").read_text())) == ["head", "memory"]
