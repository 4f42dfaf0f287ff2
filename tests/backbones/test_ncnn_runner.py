"""The runner ncnn: values and shapes of torch, one image at a time, and typed errors for unsupported networks."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from featcache.backbones.runners import ncnn as runner
from featcache.errors import ExtractionError, MissingExtra, RunnerUnsuitable

pytestmark = pytest.mark.skipif(not runner.installed(), reason="needs the extra ncnn")

SIZE = 29
#: Networks of classifiers, by name, with a legal size.
CLASSIFIERS = {"squeezenet1_1": 64, "mobilenet_v3_small": 64, "shufflenet_v2_x0_5": 64}


class Network(nn.Module):
    """Any function of images and layers as a network with a tuple of outputs."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], *layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.function(images, *self.layers)


def several_shapes(images: Tensor, stem: nn.Module, block: nn.Module, attention: nn.Module) -> tuple[Tensor, ...]:
    # 7 x 7 positions: 49 numbers, which ncnn pads to 52.
    features = block(stem(images))
    tokens = features.flatten(2).transpose(1, 2)
    attended = attention(tokens, tokens, tokens, need_weights=False)[0]
    pooled = F.adaptive_avg_pool2d(features, 1)
    return features, attended, pooled.flatten(1), pooled


def make_network() -> Network:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
    block = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.GELU(), nn.MaxPool2d(2))
    return Network(several_shapes, stem, block, nn.MultiheadAttention(24, 2, batch_first=True)).eval()


def make_images(count: int, size: int = SIZE) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def relative_difference(computed: Tensor, expected: Tensor) -> float:
    return float((computed - expected).norm() / expected.norm())


def simple(function: Callable[[Tensor], Tensor]) -> Network:
    return Network(lambda images: (function(images),)).eval()


def convert(network: nn.Module, *, outputs: int = 1, size: int = SIZE) -> runner.Program:
    return runner.Program(network, image_size=size, outputs=outputs, threads=2)


@pytest.fixture(scope="module")
def network() -> Network:
    return make_network()


@pytest.fixture(scope="module")
def program(network: Network) -> runner.Program:
    return convert(network, outputs=4)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for all temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_outputs_have_the_values_and_shapes_that_torch_gives_them(
    network: Network, program: runner.Program, count: int
) -> None:
    images = make_images(count)
    with torch.no_grad():
        expected = network(images)
    computed = program(images)
    assert [values.shape for values in computed] == [values.shape for values in expected]
    assert all(values.dtype == torch.float32 for values in computed)
    if count:
        assert max(map(relative_difference, computed, expected)) < 1e-5


def test_a_row_is_exactly_equal_in_any_batch_and_position(program: runner.Program) -> None:
    images = make_images(7)
    alone = [program(image[None]) for image in images]
    order = [3, 0, 6, 6, 1, 5, 2, 4, 0]
    together = program(images[order])
    for output, values in enumerate(together):
        expected = torch.cat([alone[row][output] for row in order])
        assert torch.equal(values, expected)


def test_a_slice_and_a_permuted_view_of_images_are_read_as_they_are(program: runner.Program) -> None:
    images = make_images(4)
    expected = program(images)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    for computed in (program(channels_last), program(make_images(4).repeat_interleave(2, 0)[::2])):
        assert all(map(torch.equal, computed, expected))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_of_torchvision_compute_what_torch_computes(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    network = Network(lambda images, classifier: (classifier(images),), model).eval()
    images = make_images(3, CLASSIFIERS[name])
    with torch.no_grad():
        (expected,) = network(images)
    (computed,) = convert(network, size=CLASSIFIERS[name])(images)
    assert relative_difference(computed, expected) < 1e-5


@pytest.mark.slow
def test_real_vgg16_features_of_real_images_are_those_of_torch(cifar_zip: Path, vgg_weights: Path) -> None:
    vgg = torchvision.models.vgg16(weights=None)
    features = vgg.features.eval()
    features.load_state_dict(
        {name.removeprefix("features."): values for name, values in load_file(vgg_weights).items()}
    )
    network = Network(lambda images, layers: (layers(images).flatten(1),), features).eval()
    images = torch.stack([open_image(cifar_zip, f"cifar10/test/{name}/0000.jpg") for name in ("cat", "ship", "horse")])
    with torch.inference_mode():
        (expected,) = network(images)
        (computed,) = convert(network, size=64)(images)
    differences = map(relative_difference, computed, expected)
    assert max(differences) < 1e-5


def open_image(archive: Path, name: str) -> Tensor:
    """(3, 64, 64) float32, normalised with ImageNet's numbers."""
    with zipfile.ZipFile(archive) as file:
        image = Image.open(io.BytesIO(file.read(name)))
    pixels: Tensor = torchvision.transforms.functional.to_tensor(image.convert("RGB").resize((64, 64)))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean[:, None, None]) / std[:, None, None]


def test_it_works_in_inference_mode_also_for_a_network_made_there() -> None:
    with torch.inference_mode():
        network = make_network()
        images = make_images(2)
        expected = network(images)
        computed = convert(network, outputs=4)(images)
    assert max(map(relative_difference, computed, expected)) < 1e-5


def test_the_network_is_not_changed() -> None:
    network = make_network()
    network.requires_grad_(True)
    before = {name: values.clone() for name, values in network.state_dict().items()}
    convert(network, outputs=4)
    assert not any(module.training for module in network.modules())
    assert all(values.requires_grad and values.grad is None for values in network.parameters())
    assert all(torch.equal(values, before[name]) for name, values in network.state_dict().items())


def test_images_that_the_first_layer_changes_in_place_are_still_compared_rightly() -> None:
    network = Network(lambda images, layer: (layer(images.mul_(2)),), nn.Conv2d(3, 4, 3)).eval()
    with torch.no_grad():
        (expected,) = network(make_images(2))
    (computed,) = convert(network)(make_images(2))
    assert relative_difference(computed, expected) < 1e-5


UNSUITABLE = {
    # Only the second image differs, because the trace contains the mean of the first one as a constant.
    "differs from torch's": lambda images: torch.stack([image * float(image.mean()) for image in images]),
    "not exists or registered": lambda images: torch.fft.rfft2(images).abs(),
    # A batch of two, which torch computes first, is no scalar.
    "torch cannot trace it": lambda images: images * (2 if len(images) == 2 else float(images.flatten())),
}


@pytest.mark.parametrize("reason", UNSUITABLE)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_network_that_ncnn_cannot_run_is_refused_with_the_reason_in_one_line(reason: str) -> None:
    with pytest.raises(RunnerUnsuitable, match=f"^ncnn cannot run Network: .*{reason}") as error:
        convert(simple(UNSUITABLE[reason]))
    assert "\n" not in error.value.message


def test_numbers_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(RunnerUnsuitable, match="differs from torch's by nan"):
        convert(simple(lambda images: images.sqrt()))


def test_a_layer_that_draws_at_random_is_refused() -> None:
    network = simple(lambda images: F.dropout(images, 0.5, training=True))
    with pytest.raises(RunnerUnsuitable):
        convert(network)


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replace pnnx by a shell script."""
    pnnx = pytest.importorskip("pnnx")

    def replace(script: str) -> None:
        path = tmp_path / "pnnx"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setattr(pnnx, "EXEC_PATH", str(path))

    if os.name == "nt":
        pytest.skip("needs a shell")
    return replace


def test_a_converter_that_crashes_is_a_typed_error(converter: Callable[[str], None], temporary: Path) -> None:
    converter("echo half > network.ncnn.param; kill -SEGV $$")
    with pytest.raises(RunnerUnsuitable, match="pnnx ended with signal SIGSEGV"):
        convert(make_network(), outputs=4)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        # One input where ncnn reads two without a check: usually a segmentation fault.
        ("BinaryOp subtract 1 1 in0 out0 0=1", "ncnn cannot run Network"),
        # An axis that does not exist.
        ("Concat join 1 1 in0 out0 0=7", "output 0 cannot be computed"),
        ("Softmax softmax 1 1 in0 out1", "output 0 cannot be computed"),
        ("Split copy 1 1 in0 out0", "output 0 differs from torch's"),
        ("Pooling mean 1 1 in0 out0 0=1 4=1", r"output 0 is \(3,\) per image, torch's \(3, 29, 29\)"),
    ],
)
def test_a_conversion_on_which_ncnn_crashes_or_fails_is_a_typed_error(
    converter: Callable[[str], None], temporary: Path, layer: str, reason: str
) -> None:
    converter(
        f"printf '7767517\\n2 2\\nInput in0 0 1 in0\\n{layer}\\n' > network.ncnn.param; echo 0000 > network.ncnn.bin"
    )
    with pytest.raises(RunnerUnsuitable, match=reason):
        convert(simple(lambda images: images * 2))
    assert not list(temporary.iterdir())


def test_a_converter_that_hangs_is_ended(
    converter: Callable[[str], None], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "TIME_LIMIT_S", 0.5)
    converter("exec sleep 60")
    with pytest.raises(RunnerUnsuitable, match="pnnx did not finish"):
        convert(make_network(), outputs=4)
    assert not list(temporary.iterdir())


def test_ctrl_c_ends_the_conversion_and_leaves_no_file(converter: Callable[[str], None], temporary: Path) -> None:
    converter("kill -INT $PPID; exec sleep 60")
    with pytest.raises(KeyboardInterrupt):
        convert(make_network(), outputs=4)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("script", ["exit 0", "echo nonsense > network.ncnn.param; : > network.ncnn.bin"])
def test_a_conversion_that_is_absent_or_damaged_is_a_typed_error(converter: Callable[[str], None], script: str) -> None:
    converter(script)
    with pytest.raises(RunnerUnsuitable):
        convert(make_network(), outputs=4)


def test_no_file_is_left_and_nothing_is_printed(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    convert(make_network(), outputs=4)(make_images(2))
    with pytest.raises(RunnerUnsuitable):
        convert(simple(UNSUITABLE["not exists or registered"]))
    assert not list(temporary.iterdir())
    assert list(tmp_path.iterdir()) == [temporary]
    assert capfd.readouterr() == ("", "")


def test_too_little_space_for_the_conversion_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(free=10**6))
    with pytest.raises(RunnerUnsuitable, match=r"MB in .*, which has 1 MB free"):
        convert(make_network(), outputs=4)


@pytest.mark.parametrize(
    "images",
    [make_images(2, SIZE - 1), make_images(2).double(), make_images(2)[0], make_images(2)[:, :1]],
    ids=["smaller", "double", "one", "grey"],
)
def test_other_images_than_the_program_was_made_for_are_refused(program: runner.Program, images: Tensor) -> None:
    with pytest.raises(ValueError, match="expected float32"):
        program(images)


def test_a_wrong_number_of_outputs_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 3 outputs, got 4"):
        convert(make_network(), outputs=3)


def test_a_failure_while_computing_is_an_extraction_error(capfd: pytest.CaptureFixture[str]) -> None:
    program = convert(make_network(), outputs=4)
    program._net.clear()
    with pytest.raises(ExtractionError, match="output 0 cannot be computed"):
        program(make_images(3))
    # A message of ncnn's C code.
    assert "out0" in capfd.readouterr().err


def test_memory_stays_bounded_over_a_thousand_calls(program: runner.Program) -> None:
    resource = pytest.importorskip("resource")
    images = make_images(2)

    def peak() -> int:
        for _ in range(500):
            program(images)
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    first = peak()
    # One image's layers take 50 kB: kept, 1,000 images would be 50 MB. Kilobytes; bytes on macOS.
    assert peak() - first < 10_000 * (1024 if sys.platform == "darwin" else 1)


@pytest.mark.parametrize("absent", ["ncnn", "pnnx"])
def test_an_absent_package_is_a_missing_extra(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"ncnn", "pnnx"} - {absent}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name in found else None)
    assert not runner.installed()
    with pytest.raises(MissingExtra, match=f"needs the package {absent}") as error:
        convert(make_network(), outputs=4)
    assert error.value.hint == "pip install 'featcache[ncnn]'"


def test_installed_imports_neither_torch_nor_ncnn() -> None:
    code = (
        "import sys; from featcache.backbones.runners import ncnn; ncnn.require(); "
        "print(sorted({'torch', 'ncnn', 'pnnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
