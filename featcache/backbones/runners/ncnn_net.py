"""Loads a converted network in ncnn from its two files, and runs it on one image at a time.

Also a script, `python ncnn_net.py OUTPUTS`, which runs the network in the current folder on the trial images there.
ncnn can crash on a network that it does not support; in a separate process a crash does no harm. This module imports
nothing from featcache, so that the process starts without torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The files that pnnx writes for `network.pt`.
STRUCTURE = "network.ncnn.param"
WEIGHTS = "network.ncnn.bin"
#: float32 (K, 3, S, S), and for each output float32 (K, ...).
TRIAL_IMAGES = "trial_images.npy"
TRIAL_OUTPUT = "trial_output_{}.npy"


class NcnnFailure(Exception):
    """ncnn reported that it cannot load or run the network."""


def load(folder: Path) -> Any:
    """Load the network from its files in `folder`, as an ncnn.Net that computes with one thread in fp32.

    Raises:
        NcnnFailure: ncnn does not know a layer, or the files are incomplete.
    """
    import ncnn

    net = ncnn.Net()
    _set_options(net.opt)
    for read, name in ((net.load_param, STRUCTURE), (net.load_model, WEIGHTS)):
        if code := read(str(folder / name)):
            raise NcnnFailure(f"the converted network does not load (code {code})")
    return net


def _set_options(options: Any) -> None:
    options.num_threads = 1
    options.lightmode = True
    options.use_vulkan_compute = False
    options.use_fp16_packed = False
    options.use_fp16_storage = False
    options.use_fp16_arithmetic = False
    options.use_bf16_packed = False
    options.use_bf16_storage = False


def compute(net: Any, image: NDArray[np.float32], outputs: int) -> Iterator[NDArray[np.float32]]:
    """One image's outputs in their order, in ncnn's shapes: without the batch axis, and at times flatter than torch's.

    Args:
        net: from `load`; several threads may use it at once.
        image: (3, S, S), C-contiguous.
        outputs: how many outputs the network has.

    Raises:
        NcnnFailure: ncnn could not compute one of them.
    """
    import ncnn

    extractor = net.create_extractor()
    # A copy in ncnn's own layout, where each channel begins at a multiple of 16 bytes.
    extractor.input("in0", ncnn.Mat(image).clone())
    for number in range(outputs):
        code, values = extractor.extract(f"out{number}")
        if code or values.empty():
            raise NcnnFailure(f"output {number} cannot be computed (code {code})")
        # A copy, because the memory belongs to the net and has gaps between the channels.
        yield np.array(values.numpy(), dtype=np.float32, order="C")


def _run_trial(outputs: int) -> None:
    net = load(Path())
    rows = [list(compute(net, image, outputs)) for image in np.load(TRIAL_IMAGES)]
    for number in range(outputs):
        np.save(TRIAL_OUTPUT.format(number), np.stack([row[number] for row in rows]))


if __name__ == "__main__":
    try:
        _run_trial(int(sys.argv[1]))
    except NcnnFailure as failure:
        sys.exit(str(failure))
