"""Builds a network, loads its weights, checks that features depend on one image only, and describes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featcache.backbones import checks, devices
from featcache.backbones.cutting import Build, Cut, cut
from featcache.backbones.feature_module import FeatureModule
from featcache.backbones.fp32 import ieee_fp32
from featcache.backbones.network import Network
from featcache.backbones.options import BackboneOptions
from featcache.backbones.probing import ProbedLayer
from featcache.backbones.spec import BackboneSpec, Layer, ProbeOutputs
from featcache.backbones.stem import with_exact_stem
from featcache.backbones.tapping import Tapped, prune
from featcache.backbones.transforms import HALF, Resize, Transform
from featcache.backbones.weights import TensorDigests, Weights, resolve, select
from featcache.backbones.zoos import zoo_of
from featcache.errors import ExtractionError, InvalidOption, one_line

# The largest relative difference between the outputs of a traced part and of the network.
_SAME = 1e-4


def load(
    options: BackboneOptions,
    *,
    weights_dir: Path,
    transform: Transform | None = None,
    known: BackboneSpec | None = None,
    pools: Mapping[str, str] | None = None,
) -> Network:
    """Load a frozen backbone with its weights on the CPU.

    Args:
        options: The network, layers, pooling, image size, normalisation and weights.
        weights_dir: The folder of downloaded packages.
        transform: A complete transform, in place of the options' image size, resize and normalisation.
        known: A description that was made with the same versions; checks that it records are skipped.
        pools: The pooling of each layer, in place of the options' one.

    Raises:
        UnknownName, InvalidOption, WeightsError, DownloadError, MissingExtra: As `describe.open_network`.
        ExtractionError: The features of an image depend on other images in the batch or on chance.
    """
    loaded = _open(options, weights_dir, transform, pools)
    weights = loaded.weights
    network = check_network(loaded.chosen, loaded.root, loaded.transform, options.pool, weights.source, known)
    spec = replace(network.spec, notes=(*weights.notes, *network.spec.notes), warnings=weights.warnings)
    return Network(spec, network._rows, weights.files)


@dataclass(frozen=True, kw_only=True, eq=False)
class Plain:
    """A network in eval mode with its weights, which returns the chosen layers; otherwise unchanged.

    Args:
        part: float32 (N, 3, S, S) -> {layer: (N, ...)}, on the CPU.
        layers: The layers, each with its pooling.
        transform: From a decoded image to the network's input.
        root: The network itself, in the module that runs it.
        inside: The path of the network in `root`, as in `Architecture`.
        probed: Where each layer is read.
        tensors: The names of the tensors that the layers depend on, relative to the network.
    """

    part: nn.Module
    layers: tuple[Layer, ...]
    transform: Transform
    root: nn.Module
    inside: str
    probed: Mapping[str, ProbedLayer]
    tensors: tuple[str, ...]


def plain(
    options: BackboneOptions,
    *,
    weights_dir: Path,
    transform: Transform | None = None,
    pools: Mapping[str, str] | None = None,
) -> Plain:
    """The network as in a hand-written script, without folding and compilation.

    Arguments are those of `load`, which raises the same errors, except ExtractionError.
    """
    loaded = _open(options, weights_dir, transform, pools)
    chosen = loaded.chosen
    return Plain(
        part=Tapped(loaded.root, chosen.probed).eval(),
        layers=chosen.layers,
        transform=loaded.transform,
        root=loaded.root,
        inside=chosen.architecture.inside,
        probed=chosen.probed,
        tensors=chosen.tensors,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loaded:
    """A network with its weights, and the transform of the options."""

    chosen: Cut
    root: nn.Module
    transform: Transform
    weights: Weights


def _open(
    options: BackboneOptions, weights_dir: Path, transform: Transform | None, pools: Mapping[str, str] | None
) -> _Loaded:
    name, zoo = options.name, zoo_of(options.name)
    zoo.check(name)
    preset = zoo.transform(name)
    size = transform.image_size if transform is not None else options.image_size or preset.image_size
    build = partial(zoo.build, name)
    chosen = cut(name, build, size, options.layers, pools or options.pool)
    weights = resolve(
        name,
        str(options.weights),
        architecture=chosen.architecture,
        image_size=size,
        random=partial(_random, build, size),
        weights_dir=weights_dir,
    )
    if transform is None:
        transform = _with_normalization(weights, options, name).with_size(size, _resize(options.resize, preset, name))
    return _Loaded(chosen=chosen, root=_fill(chosen, weights, build), transform=transform, weights=weights)


def _random(build: Build, size: int, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        architecture = build(size)
    return {name.removeprefix(architecture.inside): value for name, value in architecture.root.state_dict().items()}


def _resize(resize: Resize, preset: Transform, name: str) -> Resize:
    if resize == "crop" and preset.resize != "crop":
        raise InvalidOption(
            f"the weights of {name} were evaluated on whole images, not on their centre, got --resize crop",
            hint="leave --resize out",
        )
    return resize


def _with_normalization(weights: Weights, options: BackboneOptions, name: str) -> Transform:
    if options.normalize in (None, "weights"):
        return weights.transform
    if weights.own_normalization and weights.source.startswith(("file:", "pypi:")):
        raise InvalidOption(
            f"--normalize half contradicts {weights.source}, which contains mean {weights.transform.mean} "
            f"and std {weights.transform.std}",
            hint=f"leave --normalize out for {name}",
        )
    return replace(weights.transform, mean=HALF, std=HALF)


def _fill(chosen: Cut, weights: Weights, build: Build) -> nn.Module:
    """The network with its weights; tensors that no layer depends on are zeros or keep their initial values."""
    architecture = chosen.architecture
    if _computes_with_unsaved_tensors(architecture.root):
        # Its constructor computes index tables and the like, which need storage.
        architecture = build(chosen.image_size)
    root, inside = architecture.root, architecture.inside
    state = root.state_dict()
    wanted = {name: state[inside + name] for name in chosen.tensors}
    for name, value in select(weights, wanted, chosen.name).items():
        _assign(root, inside + name, value)
    _settle(root)
    return root.eval().requires_grad_(False)


def _assign(root: nn.Module, name: str, value: Tensor) -> None:
    """Set a parameter or buffer. (`load_state_dict` would check versions and complete sets of tensors.)"""
    path, _, attribute = name.rpartition(".")
    module = root.get_submodule(path)
    if attribute in module._parameters:
        module._parameters[attribute] = nn.Parameter(value, requires_grad=False)
    else:
        module._buffers[attribute] = value


def _computes_with_unsaved_tensors(root: nn.Module) -> bool:
    """Whether a module has tensors that are not in a state dict: non-persistent buffers, or plain attributes."""
    saved = root.state_dict().keys()
    if any(name not in saved for name, _ in root.named_buffers(remove_duplicate=False)):
        return True
    return any(_holds_tensor(value) for module in root.modules() for value in vars(module).values())


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_tensor, value))
    return isinstance(value, Tensor)


def _settle(root: nn.Module) -> None:
    """Replace tensors without storage, which no layer needs, by zeros that take no memory; drop training counters."""
    for module in root.modules():
        module._buffers.pop("num_batches_tracked", None)
        for name, value in list(module._buffers.items()):
            if value is not None and value.is_meta:
                module._buffers[name] = torch.zeros((), dtype=value.dtype).expand(value.shape)
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                module._parameters[name] = nn.Parameter(zeros, requires_grad=False)


def load_all(options: BackboneOptions, *, weights_dir: Path) -> tuple[nn.Module, tuple[Layer, ...]]:
    """A network with all its tensors, also those that no layer depends on (the text encoder of CLIP), on the CPU.

    Args:
        options: The network, layers, image size and weights.
        weights_dir: The folder of downloaded packages.

    Returns:
        The network itself, in eval mode, and the layers with the digests of their weights.

    Raises:
        What `load` raises, except ExtractionError: the network is not run.
    """
    loaded = _open(options, weights_dir, None, None)
    root, inside = loaded.root, loaded.chosen.architecture.inside
    others = {
        name.removeprefix(inside): value
        for name, value in root.state_dict().items()
        if name.removeprefix(inside) not in loaded.chosen.tensors
    }
    for name, value in select(loaded.weights, others, loaded.chosen.name, "of its text encoder").items():
        _assign(root, inside + name, value)
    return root.get_submodule(inside.removesuffix(".")), _with_digests(loaded.chosen, root)


def _with_digests(chosen: Cut, root: nn.Module) -> tuple[Layer, ...]:
    """The chosen layers with the digests of the weights that they depend on."""
    inside = chosen.architecture.inside
    state = {name.removeprefix(inside): value for name, value in root.state_dict().items()}
    digests = TensorDigests({name: state[name] for name in chosen.tensors})
    return tuple(replace(layer, weights=digests.over(chosen.probed[layer.name].tensors)) for layer in chosen.layers)


def check_network(
    chosen: Cut,
    root: nn.Module,
    transform: Transform,
    pool: str | None,
    source: str,
    known: BackboneSpec | None,
) -> Network:
    """Compute digests, check the network on the probe images, prune it, and describe it."""
    layers = _with_digests(chosen, root)
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
    with ieee_fp32():
        part, outputs = _check_part(spec, root, chosen, known)
    rows = {layer.name: layer.pooling.rows(outputs[layer.name]).float().numpy() for layer in layers}
    sketches = {name: [checks.sketch(row) for row in values] for name, values in rows.items()}
    spec = replace(spec, probe=ProbeOutputs(sketches=sketches, environment=devices.environment()))
    return Network(spec, FeatureModule(with_exact_stem(part).requires_grad_(False), transform, layers))


def _notes(layers: Sequence[Layer]) -> tuple[str, ...]:
    pooled = [f"{layer.name}: {layer.pooling.name}" for layer in layers if layer.pooling.name != "none"]
    return (f"pooling of {', '.join(pooled)}",) if pooled else ()


def _check_part(
    spec: BackboneSpec, root: nn.Module, chosen: Cut, known: BackboneSpec | None
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The module that computes the layers, and its outputs for the two probe images.

    Raises:
        ExtractionError: The features of an image depend on other images in the batch or on chance.
        InvalidOption: It cannot compute images of this size.
    """
    images = spec.transform.normalize(
        torch.from_numpy(checks.probe_images(chosen.image_size)).permute(0, 3, 1, 2).contiguous()
    )
    traced = prune(root, chosen.probed)
    tapped = Tapped(root, chosen.probed).eval()
    together = _run(tapped, images, spec.name)
    if not (known is not None and _is_known(spec, together, known)):
        dependence = checks.dependence(tapped, images, together)
        if dependence is not None:
            tapped.release()
            raise _dependence_error(spec.name, root, images, dependence, chosen.architecture.inside)
    if traced is None or not _agrees(traced, images, together, tapped):
        return tapped, together
    return traced, together


def _run(part: nn.Module, images: Tensor, name: str) -> dict[str, Tensor]:
    try:
        with torch.inference_mode():
            return dict(part(images))
    except Exception as error:
        # A network's forward may raise any exception.
        side = images.shape[-1]
        raise InvalidOption(
            f"{name} cannot compute images of {side}x{side}: {one_line(error)}",
            hint="choose another --image-size, or an earlier --layer",
        ) from error


def _is_known(spec: BackboneSpec, together: Mapping[str, Tensor], known: BackboneSpec) -> bool:
    """Whether the network was already checked with the same weights, and gave the same outputs."""
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
    except Exception:
        outputs = {}
    same = outputs.keys() == together.keys() and all(
        checks.relative_difference(outputs[name].flatten(1).numpy(), rows.flatten(1).numpy()) <= _SAME
        for name, rows in together.items()
    )
    if not same:
        tapped.watch()
    return same


def _dependence_error(
    name: str, root: nn.Module, images: Tensor, dependence: checks.Dependence, inside: str
) -> ExtractionError:
    begins = checks.first_dependent_module(root, images, dependence)
    where = f"; it begins in {begins.removeprefix(inside)}" if begins else ""
    if dependence.on == "chance":
        what, cause = "for the same images at the second run", "dropout or noise in its forward method"
    else:
        what, cause = "for an image alone than together with another image", "statistics of the batch"
    return ExtractionError(
        f"{name} computes other features {what} (layer {dependence.layer}{where}): a backbone must be a function of "
        "one image",
        hint=f"look for {cause}; in eval mode a network must not use it",
    )
