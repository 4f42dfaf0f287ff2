"""A TIFF reader: Pillow's, extended to further kinds of gray with more than 8 bits."""

from __future__ import annotations

from PIL.TiffImagePlugin import BITSPERSAMPLE, II, PHOTOMETRIC_INTERPRETATION, SAMPLESPERPIXEL, TiffImageFile

_WHITE_IS_ZERO, _BLACK_IS_ZERO = 0, 1


class TiffReader(TiffImageFile):
    """Pillow's reader, which here also opens white-is-zero gray of 12 and 16 bits, and 12-bit gray in big-endian files.

    The tags keep the values of the file, so that `decoding` knows what to invert.
    """

    def _setup(self) -> None:
        tags = self.tag_v2
        bits = tags.get(BITSPERSAMPLE)
        if bits not in ((12,), (16,)) or tags.get(SAMPLESPERPIXEL, 1) != 1:
            return super()._setup()
        photometric, prefix = tags.get(PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO), tags.prefix
        try:
            if photometric == _WHITE_IS_ZERO:
                tags[PHOTOMETRIC_INTERPRETATION] = _BLACK_IS_ZERO
            if bits == (12,):
                # Packed bits have no byte order.
                tags._prefix = II
            return super()._setup()
        finally:
            tags[PHOTOMETRIC_INTERPRETATION], tags._prefix = photometric, prefix
