"""What is asked, with nothing left to auto: images listed, backbones described, specs settled; nothing is read yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from featcache.backbones.augmentation import Augmentation
from featcache.backbones.spec import BackboneSpec
from featcache.cache.catalog import CacheEntry, candidates
from featcache.cache.spec import Json, LayerSpec, Spec
from featcache.cache.writer import serves
from featcache.errors import InvalidOption
from featcache.extraction.behaviour import settled_behaviour, without_behaviour
from featcache.extraction.computing import Computer
from featcache.extraction.execution import Execution
from featcache.extraction.images import Images
from featcache.extraction.reporting import Reporter, taking_turns
from featcache.extraction.request import Request
from featcache.extraction.stages import Stages, Stopwatch
from featcache.images.pixels import DECODER
from featcache.images.source import ImageSource

if TYPE_CHECKING:
    from featcache.backbones.runners.choosing import Chosen


@dataclass(kw_only=True, eq=False)
class Job:
    """One extraction: which rows of which images, and how they are computed.

    Args:
        request, execution: What was asked.
        images: May be shared with other extractions of the same images.
        backbone, spec: What the rows are.
        computer: Opens what computes them.
        reporter: Hears what happens.
        stages: What the extraction waits for.
        watch: Time spent on this extraction alone.
        drift: What the precision costs against fp32, once it was measured.
    """

    request: Request
    execution: Execution
    images: Images
    backbone: BackboneSpec
    spec: Spec
    computer: Computer
    reporter: Reporter
    stages: Stages = field(default_factory=Stages)
    watch: Stopwatch = field(default_factory=Stopwatch)
    drift: Json = None

    @property
    def source(self) -> ImageSource:
        """Where images are read."""
        return self.images.source

    @property
    def skips(self) -> bool:
        """Whether an image that cannot be used is left out; else it stops the extraction."""
        return self.execution.on_error == "skip"


@contextmanager
def resolve(
    requests: Sequence[Request], execution: Execution, reporter: Reporter, *, measures: bool = True
) -> Iterator[tuple[Job, ...]]:
    """One job for each request, over images that they share.

    Args:
        requests: Several backbones over the same images.
        execution: How they run.
        reporter: Hears what happens.
        measures: Whether a runner that is left to auto may be chosen by measuring; else it is eager.

    Raises:
        InvalidOption: The requests differ in their images, or two ask for the same backbone.
        FeatcacheError: Images or a backbone cannot be opened.
    """
    _require_same_images(requests)
    first = requests[0]
    opening = {"datasets_dir": first.datasets_dir, "report": reporter.say, "columns": first.asked_columns}
    with first.location.opened(**opening) as source:
        images = Images(
            source,
            requests[0],
            workers=execution.threads,
            skip_unreadable=execution.on_error == "skip",
            rehash=execution.rehash,
            reporter=reporter,
        )
        reporters = (
            [reporter] if len(requests) == 1 else taking_turns(reporter, [one.backbone_name for one in requests])
        )
        try:
            yield tuple(
                _job(request, execution, images, told, measures=measures)
                for request, told in zip(requests, reporters, strict=True)
            )
        finally:
            images.save()


def _require_same_images(requests: Sequence[Request]) -> None:
    names = [request.backbone_name for request in requests]
    if len(set(names)) != len(names):
        raise InvalidOption(f"expected different backbones, got {', '.join(names)}")
    if len({(request.selection, request.views, request.data_dir) for request in requests}) != 1:
        raise InvalidOption("expected the same images and the same data folder for every backbone")


def _job(request: Request, execution: Execution, images: Images, reporter: Reporter, *, measures: bool) -> Job:
    request = _with_size(request, images.source)
    computer = Computer(
        request=request,
        execution=execution,
        images=lambda: len(images),
        reporter=reporter,
        given=None if isinstance(request.backbone, str) else request.backbone,
    )
    backbone = computer.backbone
    for warning in backbone.warnings:
        reporter.warn(warning)
    choose = computer.choose if measures else computer.choose_eager
    spec = settled_spec(backbone, request, choose, reporter)
    return Job(
        request=request,
        execution=execution,
        images=images,
        backbone=backbone,
        spec=spec,
        computer=computer,
        reporter=reporter,
    )


def _with_size(request: Request, source: ImageSource) -> Request:
    """`pixels` takes the size that the images have, where they all have one."""
    if request.backbone != "pixels" or request.image_size is not None or source.native_size is None:
        return request
    return replace(request, image_size=max(source.native_size))


# --- the spec ----------------------------------------------------------------------------------------------


def settled_spec(backbone: BackboneSpec, request: Request, choose: Callable[[], Chosen], reporter: Reporter) -> Spec:
    """The spec to extract under, with nothing left to `auto`.

    What was left to auto is settled once, when a cache is begun: where a cache or an unfinished extraction of
    the same selection exists with another precision or runner, that one is obeyed; of several, a complete one before
    an unfinished one, then the newest. Where there is none, one with another number of views counts, for it has rows
    to give; then one of another selection of the same images.

    Args:
        backbone: The backbone's description.
        request: What is asked.
        choose: Gives runner and precision for this machine; called only where no cache settles them.
        reporter: Hears where stored rows cannot be used because the network computes something else now.
    """
    return settled_behaviour(_settled(backbone, request, choose), backbone, request.features_dir, reporter)


def _settled(backbone: BackboneSpec, request: Request, choose: Callable[[], Chosen]) -> Spec:
    if backbone.stores_bytes:
        return spec_of(backbone, request, "uint8", "eager")
    if "auto" in (request.precision, request.runner):
        any_spec = spec_of(backbone, request, "fp32", "eager")
        related = [
            one for one in candidates(request.features_dir) if differs_in_auto_alone(one.spec, any_spec, request)
        ]
        if (chosen := _preferred(related, request, any_spec)) is not None and chosen.spec is not None:
            return replace(any_spec, precision=chosen.spec.precision, runner=chosen.spec.runner)
    chosen_here = choose()
    return spec_of(backbone, request, chosen_here.precision, chosen_here.runner)


def differs_in_auto_alone(spec: Spec | None, wanted: Spec, request: Request) -> bool:
    """Whether a spec is the wanted one but for what the request leaves to auto."""
    if spec is None:
        return False
    for name in ("precision", "runner"):
        asked = getattr(request, name)
        if asked != "auto" and getattr(spec, name) != asked:
            return False
    alike = replace(without_behaviour(spec), precision=wanted.precision, runner=wanted.runner)
    return serves(alike, without_behaviour(wanted))


def _preferred(entries: Sequence[CacheEntry], request: Request, wanted: Spec) -> CacheEntry | None:
    """Of the same selection first, then with as many views, then complete, then the newest; else of the same images."""
    known = [one for one in entries if one.spec is not None and one.selection is not None]
    same_images = [one for one in known if one.selection is not None and one.selection.source == request.origin]
    ranked = sorted(
        same_images,
        key=lambda one: (
            one.selection == request.selection,
            one.spec is not None and one.spec.views == wanted.views,
            one.complete,
            one.created or "",
        ),
    )
    return ranked[-1] if ranked else None


def spec_of(backbone: BackboneSpec, request: Request, precision: str, runner: str) -> Spec:
    """The spec of the rows that a request means: `precision` and `runner` are what it leaves to auto."""
    if backbone.stores_bytes and request.dtype is not None:
        raise InvalidOption(f"{backbone.name} stores uint8: --dtype does not apply", hint="leave --dtype out")
    augmentation = described_augmentation(request)
    stored = "uint8" if backbone.stores_bytes else request.dtype or "float16"
    return Spec(
        backbone=backbone.name,
        layers=tuple(
            LayerSpec(name=layer.name, weights=layer.weights, shape=layer.shape, pool=layer.pooling.name)
            for layer in backbone.layers
        ),
        transform=backbone.transform.described() | ({"augmentation": augmentation} if augmentation else {}),
        decoder=DECODER,
        precision="uint8" if backbone.stores_bytes else precision,
        runner="eager" if backbone.stores_bytes else runner,
        dtype=stored,
        views=request.views,
        view_seed=request.spec_view_seed,
        architecture=backbone.arguments,
    )


def described_augmentation(request: Request) -> dict[str, Any] | None:
    """What the spec says of the views that are asked for; None where there is but the plain one."""
    if request.views == 1:
        return None
    return (Augmentation() if request.view_flip else Augmentation(flip=0.0)).described()


def augmentation_of(spec: Spec) -> Augmentation:
    """How the views of such a spec are made. Raises InvalidOption where another version of featcache made them."""
    described = spec.transform.get("augmentation", {})
    if not isinstance(described, Mapping):
        raise InvalidOption(f"expected the numbers of an augmentation in the spec, got {described!r}")
    return Augmentation.of(described)
