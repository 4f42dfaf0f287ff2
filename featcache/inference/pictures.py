"""Open the images of a prediction, in the order in which they are given, or those that a cache was extracted from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from featcache.errors import InvalidOption
from featcache.images import ArraySource, ImageSource, Payload, Sample, open_images
from featcache.images.listing import Listing
from featcache.images.samples import UNLABELLED
from featcache.images.source import Stamp, has_archive_suffix
from featcache.images.sources.archive import open_archive
from featcache.images.sources.folder import FilesSource, image_files

# These images belong to no data set, but a source needs a split.
_SPLIT = "test"

Images = str | Path | bytes | Sequence[str | Path | bytes] | ImageSource | np.ndarray | Sequence[np.ndarray]


def open_pictures(images: Images) -> tuple[ImageSource, list[Sample]]:
    """Open images; returns a source, and its samples in the given order.

    Args:
        images: Paths of images, of folders with images at any depth, or of zip and tar archives; bytes of encoded
            images; uint8 arrays (H, W, 3) or (N, H, W, 3); or an ImageSource.

    Raises:
        SourceError: A folder or an archive has no images.
        InvalidOption: `images` is empty.
    """
    if isinstance(images, ImageSource):
        return images, [sample for split in images.splits() for sample in images.samples(split)]
    if isinstance(images, np.ndarray):
        return open_pictures(ArraySource(images[None] if images.ndim == 3 else images, split=_SPLIT, name="array"))
    if isinstance(images, str | Path | bytes):
        images = [images]
    if not len(images):
        raise InvalidOption("expected images, got none", hint="name files, folders or archives")
    arrays = [image for image in images if isinstance(image, np.ndarray)]
    if arrays:
        return open_pictures(ArraySource(arrays, split=_SPLIT, name="array"))
    named = [image for image in images if not isinstance(image, np.ndarray)]
    pictures = Pictures([image if isinstance(image, bytes) else Path(image) for image in named])
    return pictures, pictures.in_order


def source_of(name: str, data_dir: Path) -> ImageSource:
    """Open the images that a cache was extracted from, by the name or the path of their set; nothing is downloaded.

    Raises DownloadError or SourceError where they do not exist.
    """
    # A check or a picture does not justify the download of a data set.
    return open_images(name, datasets_dir=data_dir / "datasets", download=False)


class Pictures(ImageSource):
    """Images at paths, or encoded images.

    Ids are the paths as they were given; for images in folders and archives, the path inside is appended. Encoded
    images are called image-0, image-1 and so on.

    Args:
        images: Paths and encoded images. A missing file counts as an image that cannot be read.

    Attributes:
        in_order: A sample for every image, repeated if it was given several times.

    Raises:
        SourceError: A folder or an archive has no images, or cannot be opened.
    """

    def __init__(self, images: Sequence[Path | bytes]) -> None:
        self._open = ExitStack()
        self._archived: dict[str, tuple[ImageSource, Sample]] = {}
        self._encoded: dict[str, bytes] = {}
        names = [name for image in images for name in self._names(image)]
        listing = Listing.of_rows(((_SPLIT, name, UNLABELLED) for name in dict.fromkeys(names)), ())
        super().__init__(name="pictures", origin="pictures", listing=listing)
        self._files = FilesSource(
            name="pictures", origin="pictures", listing=listing, paths={name: name for name in names}
        )
        samples = {sample.id: sample for sample in self.samples(_SPLIT)}
        self.in_order = [samples[name] for name in names]

    def _names(self, path: Path | bytes) -> list[str]:
        if isinstance(path, bytes):
            name = f"image-{len(self._encoded)}"
            self._encoded[name] = path
            return [name]
        if path.is_dir():
            return [str(path / name) for name in image_files(path)]
        if not (has_archive_suffix(path.name) and path.is_file()):
            return [str(path)]
        archive = self._open.enter_context(open_archive(path))
        inside = [sample for split in archive.splits() for sample in archive.samples(split)]
        self._archived |= {f"{path}/{sample.id}": (archive, sample) for sample in inside}
        return [f"{path}/{sample.id}" for sample in inside]

    def read(self, sample: Sample) -> Payload:
        """The encoded image. Raises ImageError where it cannot be read."""
        if sample.id in self._encoded:
            return self._encoded[sample.id]
        if sample.id in self._archived:
            archive, inside = self._archived[sample.id]
            return archive.read(inside)
        return self._files.read(sample)

    def stamp(self, sample: Sample) -> Stamp | None:
        """None: these images are read only once, so their digests are not saved."""
        return None

    def close(self) -> None:
        """Close the archives."""
        self._open.close()
