"""From a layer's name to the smallest network that computes it, and to the shape of what comes out.

Shapes, the position of the channels and the tensors a layer needs are measured by forward passes on the meta
device, never looked up in a table.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from featcache.backbones import networks, timm_networks
from featcache.errors import InvalidOption, UnknownName

if TYPE_CHECKING:
    from torch import Tensor

_IN_PLACE = {operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub}
# Networks whose layers are (N, tokens, channels) and whose number of tokens cannot change.
_TOKENS = ("vit", "deit", "beit", "eva", "cait")


class _NamedOutput(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"output": self.inner(images)}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One named layer of a backbone.

    `shape` is that of one image's features before they are flattened, after pooling: (512, 7, 7) or (2048,).
    `mean_over` are the dimensions of the batched output that pooling averages (empty: none).
    `tensors` are the names of the weights and buffers that the layer's value depends on.
    """

    name: str
    shape: tuple[int, ...]
    mean_over: tuple[int, ...] = ()
    tensors: tuple[str, ...] = ()

    @property
    def feature_dim(self) -> int:
        return math.prod(self.shape)

    def flatten(self, output: Tensor) -> Tensor:
        """(N, ...) as the network computed it -> (N, D), in the network's own order."""
        pooled = output.mean(dim=self.mean_over) if self.mean_over else output
        return pooled.flatten(start_dim=1)


def layer_nodes(network: nn.Module) -> list[str]:
    """The traced nodes, in the order in which they are computed."""
    from torchvision.models.feature_extraction import get_graph_node_names

    with networks.quiet_tracing():
        nodes: list[str] = get_graph_node_names(network)[1]
    return nodes


def layer_names(network: nn.Module) -> tuple[str, ...]:
    """Everything that can be asked for: the traced nodes and the modules that hold them."""
    nodes = layer_nodes(network)
    modules = {node.rsplit(".", depth)[0] for node in nodes for depth in range(1, node.count(".") + 1)}
    return tuple(dict.fromkeys([*nodes, *sorted(modules)]))


def cut(network: nn.Module, backbone: str, names: Sequence[str]) -> nn.Module:
    """The part of `network` that computes the layers `names`: (N, 3, S, S) -> {name: output}.

    Raises UnknownName where there is no such layer.
    """
    from torchvision.models.feature_extraction import create_feature_extractor

    known = layer_names(network)
    for name in names:
        if name not in known or name == known[0]:
            raise UnknownName(f"layer of {backbone}", name, known[1:], listed_by=f"featcache backbones {backbone}")
    with networks.quiet_tracing():
        part: fx.GraphModule = create_feature_extractor(network, {name: name for name in names}).eval()
    if len(names) > 1:
        _forbid_in_place(part)
    return part


def copied(part: nn.Module) -> nn.Module:
    """A copy in eval mode whose modules can be replaced; a graph shares them.

    Torchvision's graphs cannot be copied once they were changed.
    """
    if isinstance(part, fx.GraphModule):
        return fx.GraphModule(part, copy.deepcopy(part.graph)).eval()
    return copy.deepcopy(part).eval()


def fold_batch_norms(part: nn.Module) -> None:
    """Folds every batch norm into the convolution it alone reads: the same function, one rounding less a layer.

    In eval mode a batch norm is a scale and a shift per channel, and those belong to the weights.
    """
    if not isinstance(part, fx.GraphModule):
        return
    modules = dict(part.named_modules())
    for node in list(part.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        convolution, norm = modules.get(str(before.target)), modules.get(str(node.target))
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            part.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            part.graph.erase_node(node)
    part.delete_all_unused_submodules()
    part.recompile()


def traced_constants(part: nn.Module) -> dict[str, Tensor]:
    """The tensors that tracing computed and froze into the graph, by name."""
    return {name: value for name, value in part.named_buffers() if "_tensor_constant" in name}


def _forbid_in_place(part: fx.GraphModule) -> None:
    """A later operation must not overwrite the output of a layer that was asked for too."""
    for module in part.modules():
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010 - nn.Module's own attributes are typed as tensors
    for node in part.graph.nodes:
        if node.op == "call_function":
            node.target = _IN_PLACE.get(node.target, node.target)
            if "inplace" in node.kwargs:
                node.kwargs = {**node.kwargs, "inplace": False}
    part.recompile()


def measure(
    network: nn.Module, part: nn.Module, backbone: str, names: Sequence[str], pool: str, image_size: int
) -> list[Layer]:
    """The layers `names` at `image_size`; `network` and `part`, cut from it, lie on the meta device.

    Raises InvalidOption where the network cannot take images of that size, where a layer's first dimension is
    not the batch, or where `pool` is "avg" and the position of the channels is not known.
    """
    shapes, others = (_shapes(part, backbone, image_size, batch) for batch in (2, 3))
    layers = []
    for name in names:
        if (shapes[name][0], others[name][0]) != (2, 3):
            raise InvalidOption(
                f"layer {name} of {backbone} does not give one row per image (shape {shapes[name]} for 2 images)",
                hint="choose the layer in front of it or behind it",
            )
        alone = part if len(names) == 1 else cut(network, backbone, [name])
        mean_over = _spatial(alone, name, backbone, image_size, shapes[name]) if pool == "avg" else ()
        kept = [size for dim, size in enumerate(shapes[name]) if dim > 0 and dim not in mean_over]
        layers.append(
            Layer(name=name, shape=tuple(kept), mean_over=mean_over, tensors=tuple(sorted(alone.state_dict())))
        )
    return layers


def named_output(module: nn.Module) -> nn.Module:
    """A network whose only layer is the module's own output: (N, 3, S, S) -> {"output": output}."""
    return _NamedOutput(module)


def measure_output(part: nn.Module, backbone: str, image_size: int) -> Layer:
    """The layer "output" of `named_output`, measured by a forward pass of two black images.

    Raises InvalidOption where the output is not one tensor with a row per image.
    """
    import torch

    with torch.inference_mode():
        output = part(torch.zeros(2, 3, image_size, image_size))["output"]
    if not torch.is_tensor(output) or output.dim() < 2 or len(output) != 2:
        got = tuple(output.shape) if torch.is_tensor(output) else type(output).__name__
        raise InvalidOption(f"expected {backbone} to give a tensor with one row per image, got {got} for 2 images")
    return Layer(name="output", shape=tuple(output.shape[1:]), tensors=tuple(sorted(part.state_dict())))


def _shapes(part: nn.Module, backbone: str, image_size: int, batch: int) -> Mapping[str, tuple[int, ...]]:
    import torch

    images = torch.empty(batch, 3, image_size, image_size, device="meta")
    try:
        with torch.inference_mode():
            outputs = part(images)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise InvalidOption(
            f"{backbone} cannot take images of {image_size}x{image_size}: {str(error).splitlines()[0]}",
            hint="leave --image-size out, or choose one nearer to the network's own",
        ) from error
    return {name: tuple(output.shape) for name, output in outputs.items()}


def _spatial(part: nn.Module, name: str, backbone: str, image_size: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions that hold positions rather than channels: for NCHW (2, 3), NHWC (1, 2), tokens (1,).

    Positions are those that grow with the image. Where the size cannot change, or does not change the output
    (an adaptive pool), the kind of module that computed it decides.
    """
    if len(shape) == 2:
        return ()
    if len(shape) == 3 and backbone.removeprefix(timm_networks.PREFIX).startswith(_TOKENS):
        return (1,)
    try:
        larger = _shapes(part, backbone, 2 * image_size, batch=2)[name]
    except InvalidOption:
        larger = shape
    grown = tuple(dim for dim in range(1, len(shape)) if larger[dim] != shape[dim])
    if len(grown) == len(shape) - 2:
        return grown
    if len(shape) == 4 and _is_channels_first(part, name):
        return (2, 3)
    raise InvalidOption(
        f"layer {name} of {backbone}: cannot tell channels from positions in its output {shape}",
        hint="use --pool none for this layer",
    )


def _is_channels_first(part: nn.Module, name: str) -> bool:
    import torch

    kinds = (torch.nn.AdaptiveAvgPool2d, torch.nn.AdaptiveMaxPool2d, torch.nn.Conv2d, torch.nn.BatchNorm2d)
    return any(path == name and isinstance(module, kinds) for path, module in part.named_modules())
