"""The runner `ncnn`: Winograd convolutions in fp32 on x86 and ARM CPUs.

torch traces the network, pnnx converts the trace, and ncnn runs the result. pnnx and ncnn can crash, hang or compute
wrong numbers on a network that they do not support. Therefore pnnx and ncnn's first run are separate processes with a
time limit, and this process only loads a network whose outputs there were those of torch.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.backbones.runners import ncnn_net
from featcache.errors import ExtractionError, MissingExtra, RunnerUnsuitable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from featcache.backbones.feature_module import FeatureModule
    from featcache.backbones.program import Compute

#: Largest norm of an output's difference to torch's, over the norm of torch's. fp32 gives 1e-7 to 1e-5.
TOLERANCE = 1e-4
#: The limit for the conversion, and for the first run. The longest observed conversions take half a minute.
TIME_LIMIT_S = 300.0
_TRACED = "network.pt"


def installed() -> bool:
    """Whether ncnn and its converter pnnx are installed; nothing is imported."""
    return not _missing()


def require() -> None:
    """Raises MissingExtra if ncnn or its converter pnnx is not installed; nothing is imported."""
    if missing := _missing():
        raise MissingExtra("--runner ncnn", package=missing[0], extra="ncnn")


def _missing() -> list[str]:
    return [package for package in ("ncnn", "pnnx") if importlib.util.find_spec(package) is None]


class Program:
    """A network that ncnn runs, each image separately in one thread, so that a row cannot depend on its batch.

    The given network is not kept, and all files are deleted.
    """

    def __init__(self, network: nn.Module, *, image_size: int, outputs: int, threads: int) -> None:
        """Convert the network and compare its outputs with torch's on two images.

        Args:
            network: in eval mode on the CPU, in fp32; maps normalised images float32 (N, 3, S, S) to a tuple of
                tensors float32 (N, ...) with 2 to 4 dimensions. It is not changed.
            image_size: S, pixels.
            outputs: how many tensors the network returns.
            threads: how many images are computed at once.

        Raises:
            MissingExtra: ncnn or pnnx is not installed.
            RunnerUnsuitable: the network cannot be traced, converted, loaded or run, or computes other numbers.
        """
        require()
        self._image_shape = (3, image_size, image_size)
        trial = _Trial(network, self._image_shape, outputs)
        self._shapes = trial.shapes
        with tempfile.TemporaryDirectory(prefix="featcache-ncnn-") as folder:
            trial.convert(Path(folder), threads)
            trial.check(Path(folder), threads)
            self._net = trial.load(Path(folder))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ncnn")

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the network's outputs.

        Args:
            images: (N, 3, S, S) float32, contiguous, on the CPU; N may differ from call to call.

        Returns:
            Each output, float32, in the shape that torch gives it.

        Raises:
            ValueError: the images have another shape or dtype.
            ExtractionError: ncnn reported a failure, for example too little memory.
        """
        import torch

        # ncnn would read beyond a smaller image.
        if images.dtype != torch.float32 or images.shape[1:] != self._image_shape:
            expected = ("N", *self._image_shape)
            raise ValueError(f"expected float32 {expected}, got {images.dtype} {tuple(images.shape)}")
        batch = np.ascontiguousarray(images.detach().numpy())
        results = [np.empty((len(batch), *shape), dtype=np.float32) for shape in self._shapes]
        # list() waits for all of them, and raises the first exception.
        list(self._pool.map(lambda row: self._compute(batch[row], row, results), range(len(batch))))
        return tuple(torch.from_numpy(values) for values in results)

    def _compute(self, image: NDArray[np.float32], row: int, results: Sequence[NDArray[np.float32]]) -> None:
        try:
            for values, result in zip(ncnn_net.compute(self._net, image, len(results)), results, strict=True):
                result[row] = values.reshape(result.shape[1:])
        except ncnn_net.NcnnFailure as failure:
            raise ExtractionError(str(failure), hint="free some memory, or choose another --runner") from failure


class _Trial:
    """Converts a network for ncnn, and compares its outputs for two images with those of torch."""

    def __init__(self, network: nn.Module, image_shape: tuple[int, ...], outputs: int) -> None:
        import torch

        self._network = network
        # Clones of the images here and below: a first layer may compute in place.
        with torch.inference_mode(False), torch.no_grad():
            self._images = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0))
            self._expected = [output.numpy() for output in network(self._images.clone())]
        if len(self._expected) != outputs:
            raise ValueError(f"expected {outputs} outputs, got {len(self._expected)}")
        self.shapes = [output.shape[1:] for output in self._expected]

    def convert(self, folder: Path, threads: int) -> None:
        """Write ncnn's two files to `folder`."""
        self._check_space(folder)
        self._trace().save(folder / _TRACED)
        import pnnx

        # The other output files are not needed, and each is as large as the weights.
        unwanted = [f"{key}={os.devnull}" for key in ("pnnxparam", "pnnxbin", "pnnxpy", "pnnxonnx", "ncnnpy")]
        shape = ",".join(str(size) for size in (1, *self._images.shape[1:]))
        command = [pnnx.EXEC_PATH, _TRACED, f"inputshape=[{shape}]f32", "fp16=0", *unwanted]
        self._run("pnnx", command, folder, threads)
        for name in (ncnn_net.STRUCTURE, ncnn_net.WEIGHTS):
            if not (folder / name).is_file():
                raise self._unsuitable("pnnx did not convert it")

    def _check_space(self, folder: Path) -> None:
        """Check the free space first, because a full disk looks like a network that cannot be converted."""
        held = [*self._network.parameters(), *self._network.buffers()]
        # The trace, pnnx's constants, ncnn's weights.
        needed = 3 * sum(tensor.nbytes for tensor in held) + 2**26
        if (free := shutil.disk_usage(folder).free) < needed:
            space = f"{needed / 1e6:,.0f} MB in {folder.parent}, which has {free / 1e6:,.0f} MB free"
            raise self._unsuitable(f"its conversion needs {space}")

    def _trace(self) -> Any:
        import torch

        try:
            # Two warnings do not apply: sizes become constants, which is right for one image size; and tracing is
            # deprecated, but pnnx needs it.
            with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
                warnings.simplefilter("ignore")
                return torch.jit.trace(self._network, self._images[:1].clone(), check_trace=False)  # type: ignore[no-untyped-call]
        except Exception as error:
            raise self._unsuitable(f"torch cannot trace it: {_last_lines(str(error))}") from error

    def check(self, folder: Path, threads: int) -> None:
        """Run the files in `folder` in a separate process; the outputs must be those of torch."""
        np.save(folder / ncnn_net.TRIAL_IMAGES, self._images.numpy())
        # -P: the folder of this script also contains a module named ncnn.
        command = [sys.executable, "-P", ncnn_net.__file__, str(len(self._expected))]
        self._run("ncnn", command, folder, threads)
        for number, expected in enumerate(self._expected):
            self._compare(number, np.load(folder / ncnn_net.TRIAL_OUTPUT.format(number)), expected)

    def _compare(self, number: int, computed: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        if computed.size != expected.size:
            raise self._unsuitable(f"output {number} is {computed.shape[1:]} per image, torch's {expected.shape[1:]}")
        for row, right in zip(computed.reshape(expected.shape), expected, strict=True):
            difference, norm = _norm(row.astype(np.float64) - right), _norm(right.astype(np.float64))
            # Not "greater": NaN must not pass.
            if not difference <= TOLERANCE * norm:
                error = difference / norm if norm else math.inf
                raise self._unsuitable(f"output {number} differs from torch's by {error:.1e}, relative")

    def load(self, folder: Path) -> Any:
        """Load the checked network in this process."""
        try:
            return ncnn_net.load(folder)
        except ncnn_net.NcnnFailure as failure:
            raise self._unsuitable(str(failure)) from failure

    def _run(self, what: str, command: Sequence[str], folder: Path, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=TIME_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise self._unsuitable(f"{what} did not finish within {TIME_LIMIT_S:.0f} s") from error
        if done.returncode:
            text = done.stderr.decode(errors="replace")
            raise self._unsuitable(f"{what} ended with {_code(done.returncode)}: {_last_lines(text)}")

    def _unsuitable(self, reason: str) -> RunnerUnsuitable:
        return RunnerUnsuitable("ncnn", type(self._network).__name__, reason)


def _norm(values: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(values.ravel()))


def _code(returncode: int) -> str:
    """The return code of subprocess as text; negative codes are signals."""
    return f"code {returncode}" if returncode > 0 else f"signal {signal.Signals(-returncode).name}"


def _last_lines(text: str) -> str:
    """The last two lines: libraries often write the reason in the line before the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[-2:]) or "no message"


class _Ncnn:
    one_shape = False
    alone = True
    precisions: tuple[str, ...] = ("fp32",)
    devices: tuple[str, ...] = ("cpu",)

    def require(self) -> None:
        """Raises MissingExtra if a package is not installed."""
        require()

    def compute(self, rows: FeatureModule, *, device: str, precision: str, batch_size: int) -> Compute:
        """See Runner. It converts the network immediately, which takes seconds."""
        import torch

        from featcache.backbones.stem import in_one_precision
        from featcache.backbones.tapping import in_order

        names = [layer.name for layer in rows.layers]
        part = in_order(in_one_precision(rows.part, "fp32"), names)
        program = Program(
            part, image_size=rows.transform.image_size, outputs=len(names), threads=torch.get_num_threads()
        )

        def compute(batch: Tensor) -> Mapping[str, Tensor]:
            outputs = program(rows.transform.normalize(batch).contiguous())
            return {layer.name: layer.pooling.rows(output) for layer, output in zip(rows.layers, outputs, strict=True)}

        return compute


RUNNER = _Ncnn()
