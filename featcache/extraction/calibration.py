"""Which values the convolutions of an int8 backbone meet: observed once, on some of the very images.

The ranges are part of the spec, so every resume, part and recomputation computes with the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from featcache.backbones.backbone import Backbone
from featcache.errors import ImageError, SourceError
from featcache.extraction.plan import selected
from featcache.extraction.reporting import Reporter
from featcache.extraction.shared_images import SharedImages
from featcache.images.decoding import decode
from featcache.images.samples import SampleRows

# With 8 images a rare value may be missed that others reach; more than 32 change little.
_IMAGES = 32


def observed_ranges(backbone: Backbone, images: SharedImages, reporter: Reporter) -> dict[str, tuple[float, float]]:
    """The least and the greatest value of each convolution's input, by its name, over 32 of the images, in fp32.

    Which images these are depends on the selection alone. Raises ImageError for one that cannot be used, SourceError
    where these may be skipped and all were.
    """
    pictures = list(_pictures(backbone, images))
    if not pictures:
        raise SourceError("none of the images that int8 would be scaled by can be read")
    reporter.say(f"observing what {backbone.name} computes on {len(pictures)} images: int8 is scaled by it")
    found = backbone.observed(np.stack(pictures))
    # Rounded, so that the last bit of another machine's arithmetic makes no other cache.
    return {name: (float(f"{least:.3g}"), float(f"{greatest:.3g}")) for name, (least, greatest) in found.items()}


def _pictures(backbone: Backbone, images: SharedImages) -> Iterator[npt.NDArray[np.uint8]]:
    samples = SampleRows(list(selected(images.source, images.request).values()))
    count = min(_IMAGES, len(samples))
    # In the middle between those that the drift is measured on.
    for row in ((np.arange(count) + 0.5) / count * len(samples)).astype(np.int64):
        sample = samples[int(row)]
        try:
            yield backbone.resize(decode(images.source.read(sample), sample.id))
        except ImageError:
            if not images.skip_unreadable:
                raise
