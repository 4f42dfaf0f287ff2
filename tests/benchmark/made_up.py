"""An invented result with round numbers, from which a test knows what must follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from featcache.benchmark.options import BenchmarkOptions, scenario
from featcache.benchmark.result import COLD, NOTEBOOK, TUNED, WARM, Agreement, Features, Result, Way

MB = 1 << 20
FULL = {"train": 800, "val": 200, "test": 500}
SAMPLE = {"train": 80, "val": 20, "test": 50}
MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "device": "cpu",
    "versions": {"torch": "2"},
    "date": "2026-01-01",
}


def way(name: str, **changes: Any) -> Way:
    """A way on all images with two epochs of one second."""
    values: dict[str, Any] = {
        "images": FULL,
        "setup_s": 0.0,
        "epoch_s": (1.0, 1.0),
        "test_s": 0.0,
        "heads_s": ((1, 3.0),),
        "val_accuracy": 0.6,
        "test_accuracy": 0.7,
        "memory": {"peak": 500 * MB, "libraries": 400 * MB, "device": None},
    }
    return Way(name=name, **(values | changes))


def make_options(**changes: Any) -> BenchmarkOptions:
    """CIFAR-10 and VGG16: 10 epochs, 4 heads, end to end on a tenth of the images."""
    values: dict[str, Any] = {"limit": 1000, "epochs": 10, "heads": 4, "sample": 100, "sample_epochs": 2}
    return replace(scenario("cifar10-vgg16"), **(values | changes))


def result(options: BenchmarkOptions | None = None, **ways: Way) -> Result:
    """A result: at full size a notebook's epoch takes 200 s, a tuned one 100 s, a cached one 1 s, extraction 150 s."""
    measured = {
        NOTEBOOK: way(NOTEBOOK, images=SAMPLE, setup_s=2.0, epoch_s=(20.0, 20.0), test_s=10.0, heads_s=((1, 52.0),)),
        TUNED: way(TUNED, images=SAMPLE, setup_s=2.0, epoch_s=(10.0, 10.0), test_s=5.0, heads_s=((1, 27.0),)),
        COLD: way(COLD, setup_s=150.0, epoch_s=(1.0,) * 10, heads_s=((1, 162.0), (2, 174.0), (3, 186.0), (4, 198.0))),
        WARM: way(WARM, epoch_s=(1.0,) * 10, heads_s=((1, 12.0),)),
    }
    agreement = Agreement(
        baseline=NOTEBOOK,
        precision="fp32",
        stored="float32",
        images=SAMPLE,
        epochs=2,
        step_loss=1e-6,
        logits=1e-5,
        same_answers=70,
        answers=70,
        val_accuracy=(0.6, 0.6),
        test_accuracy=(0.5, 0.5),
    )
    return Result(
        command="python benchmarks/end_to_end.py",
        machine=MACHINE,
        options=options or make_options(),
        features=Features(
            layer="avgpool",
            feature_dim=25088,
            precision="bf16",
            runner="eager",
            stored="float16",
            weights="file:vgg16.safetensors",
            cache_bytes=75_000_000,
            extract_images_per_s=10.0,
        ),
        ways=measured | ways,
        agreements=(agreement, replace(agreement, baseline=TUNED, precision="bf16", stored="float16")),
    )
