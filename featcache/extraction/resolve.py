"""Resolve requests into jobs: list the images, describe the backbones, replace `auto`. No image is read yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from featcache.backbones.augmentation import Augmentation
from featcache.backbones.spec import BackboneSpec
from featcache.cache.catalog import CacheEntry, caches_with_spec
from featcache.cache.spec import Json, LayerSpec, Spec
from featcache.cache.writer import serves
from featcache.errors import InvalidOption
from featcache.extraction.behaviour import resolve_behaviour, without_behaviour
from featcache.extraction.computing import Computer
from featcache.extraction.execution import Execution
from featcache.extraction.images import Images
from featcache.extraction.reporting import Reporter, split_reporter
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
        request, execution: The options.
        images: The images; may be shared with other extractions of the same images.
        backbone, spec: The description of the backbone, and the spec of the rows.
        computer: Opens device, network and program.
        reporter: Receives messages and progress.
        stages: What the extraction waits for.
        watch: Time spent on this extraction alone.
        drift: The error of the precision against fp32, once it was measured.
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
        """Whether an image that cannot be read is skipped; else it stops the extraction."""
        return self.execution.on_error == "skip"


@contextmanager
def resolve(
    requests: Sequence[Request], execution: Execution, reporter: Reporter, *, measures: bool = True
) -> Iterator[tuple[Job, ...]]:
    """Yield one job for each request; the jobs share their images, which are open until the context ends.

    Args:
        requests: Several backbones over the same images.
        execution: How they run.
        reporter: Receives messages and progress.
        measures: Whether the runner `auto` may be chosen by measuring; else it is eager.

    Raises:
        InvalidOption: The requests differ in their images, or two have the same backbone.
        FeatcacheError: Images or a backbone cannot be opened.
    """
    _require_same_images(requests)
    first = requests[0]
    opening = {"datasets_dir": first.datasets_dir, "report": reporter.info, "columns": first.column_options}
    with first.location.open_and_close(**opening) as source:
        images = Images(
            source,
            requests[0],
            workers=execution.threads,
            skip_unreadable=execution.on_error == "skip",
            rehash=execution.rehash,
            reporter=reporter,
        )
        reporters = (
            [reporter] if len(requests) == 1 else split_reporter(reporter, [one.backbone_name for one in requests])
        )
        try:
            yield tuple(
                _job(request, execution, images, its_reporter, measures=measures)
                for request, its_reporter in zip(requests, reporters, strict=True)
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
    spec = resolve_spec(backbone, request, choose, reporter)
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
    """The request; for `pixels` without a size, with the size of the images, where they all have the same."""
    if request.backbone != "pixels" or request.image_size is not None or source.native_size is None:
        return request
    return replace(request, image_size=max(source.native_size))


# --- the spec ----------------------------------------------------------------------------------------------


def resolve_spec(backbone: BackboneSpec, request: Request, choose: Callable[[], Chosen], reporter: Reporter) -> Spec:
    """The spec to extract under, with `auto` replaced.

    The values of `auto` are chosen once, when a cache is begun. Where a cache or an unfinished extraction of the same
    selection exists, its precision and runner are used; of several, a complete one before an unfinished one, then the
    newest. Else those of a cache with another number of views, since its rows can be reused; else those of a cache of
    another selection of the same images.

    Args:
        backbone: The backbone's description.
        request: The options.
        choose: Returns runner and precision for this machine; called only where no cache determines them.
        reporter: Receives a warning where stored rows cannot be used because the network computes something else now.
    """
    return resolve_behaviour(_resolve_auto(backbone, request, choose), backbone, request.features_dir, reporter)


def _resolve_auto(backbone: BackboneSpec, request: Request, choose: Callable[[], Chosen]) -> Spec:
    if backbone.stores_bytes:
        return spec_of(backbone, request, "uint8", "eager")
    if "auto" in (request.precision, request.runner):
        any_spec = spec_of(backbone, request, "fp32", "eager")
        related = [
            one for one in caches_with_spec(request.features_dir) if differs_in_auto_alone(one.spec, any_spec, request)
        ]
        if (chosen := _choose_entry(related, request, any_spec)) is not None and chosen.spec is not None:
            return replace(any_spec, precision=chosen.spec.precision, runner=chosen.spec.runner)
    chosen_here = choose()
    return spec_of(backbone, request, chosen_here.precision, chosen_here.runner)


def differs_in_auto_alone(spec: Spec | None, wanted: Spec, request: Request) -> bool:
    """Whether a spec differs from the wanted one at most in options that the request leaves to `auto`."""
    if spec is None:
        return False
    for name in ("precision", "runner"):
        requested = getattr(request, name)
        if requested != "auto" and getattr(spec, name) != requested:
            return False
    alike = replace(without_behaviour(spec), precision=wanted.precision, runner=wanted.runner)
    return serves(alike, without_behaviour(wanted))


def _choose_entry(entries: Sequence[CacheEntry], request: Request, wanted: Spec) -> CacheEntry | None:
    """The best cache of the same images: by same selection, then same number of views, complete, newest."""
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
    """The spec that a request describes, with the given `precision` and `runner` in place of `auto`."""
    if backbone.stores_bytes and request.dtype is not None:
        raise InvalidOption(f"{backbone.name} stores uint8: --dtype does not apply", hint="leave --dtype out")
    augmentation = describe_augmentation(request)
    stored = "uint8" if backbone.stores_bytes else request.dtype or "float16"
    return Spec(
        backbone=backbone.name,
        layers=tuple(
            LayerSpec(name=layer.name, weights=layer.weights, shape=layer.shape, pool=layer.pooling.name)
            for layer in backbone.layers
        ),
        transform=backbone.transform.to_json() | ({"augmentation": augmentation} if augmentation else {}),
        decoder=DECODER,
        precision="uint8" if backbone.stores_bytes else precision,
        runner="eager" if backbone.stores_bytes else runner,
        dtype=stored,
        views=request.views,
        view_seed=request.spec_view_seed,
        architecture=backbone.arguments,
    )


def describe_augmentation(request: Request) -> dict[str, Any] | None:
    """The augmentation as the spec records it; None where there is only the plain view."""
    if request.views == 1:
        return None
    return (Augmentation() if request.view_flip else Augmentation(flip=0.0)).to_json()


def augmentation_of(spec: Spec) -> Augmentation:
    """The augmentation that a spec records. Raises InvalidOption where this version of featcache does not know it."""
    described = spec.transform.get("augmentation", {})
    if not isinstance(described, Mapping):
        raise InvalidOption(f"expected the parameters of an augmentation in the spec, got {described!r}")
    return Augmentation.from_json(described)
