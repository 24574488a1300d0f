"""Decoding of images to RGB, with the safety limits on pixels, memory and time."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Condition

import numpy as np
from PIL import Image, ImageFile

from ..errors import BadImage, shorten
from .downloads import Downloads
from .image_headers import check_tiff, foreign_format, image_format, jpeg_scans, needed_png
from .image_refs import fetch_control
from .pillow import DECODE_SECONDS, READERS, TimedBytes, TooSlow
from .resize import Size

MAX_PIXELS = 100_000_000
"""A judgement: above every camera for training images, and 300 MB decoded."""


MAX_SIDE = 32_768
"""A judgement: more than any photograph has."""


MAX_MEMORY = 800 * 2**20
"""Bytes that decoding may take, of one image and of all that are decoded at once: two copies of MAX_PIXELS, and below a
gigabyte."""


MAX_SCANNED_PIXELS = 3_000_000_000
"""Pixels of a JPEG times its scans. Measured: 1 to 5 seconds; ten scans of the largest image are a third of it."""


_COPIES_BYTES = 8
"""Bytes of a pixel in two images: one that is converted or turned, and the result. Pillow takes 4 for RGB."""


_WORK_BYTES = {"WebP": 16, "AVIF": 20, "TIFF": 12}
"""Bytes of a pixel while Pillow decodes it, with the image itself. Measured with Pillow 13."""


_PROGRESSIVE_BYTES = 10
"""Bytes of a pixel for a progressive JPEG, whose coefficients are all kept: 16 bits each, of three planes."""


STRIP_ROWS = 256
"""Rows that are converted or hashed at a time; a judgement: a few megabytes."""


_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_ON_ITS_SIDE = (5, 6, 7, 8)
"""Orientations that swap width and height."""


_ORIENTATION_TAG = 0x0112


class EncodedImage:
    """An image whose header is read, so that its size is known before its pixels are decoded."""

    def __init__(self, data: bytes) -> None:
        """Read the header.

        Raises BadImage for unsupported formats, sizes over MAX_PIXELS or MAX_SIDE, and images that take more than
        MAX_MEMORY or MAX_SCANNED_PIXELS.
        """
        self._format = image_format(data)
        # PIL decodes a whole PNG to look for an orientation, so only where one may be.
        self._oriented = True
        if self._format == "PNG":
            data, self._oriented = needed_png(data)
        self._data = data
        self._image = _open(data, self._format)

    @cached_property
    def size(self) -> Size:
        """Size of the image that `decode` returns, with the EXIF orientation applied."""
        image = self._image
        turned = self._format != "TIFF" and self._orientation(image) in _ON_ITS_SIDE
        return Size(image.height, image.width) if turned else Size(*image.size)

    def decode(self) -> Image.Image:
        """Decode as `decode_image` does. Call it once."""
        with _memory(_memory_bytes(self._image, self._format)):
            return self._decode()

    def decode_mask(self) -> Image.Image:
        """Decode as `decode` does, on black where the image is transparent: that was not painted. Call it once."""
        with _memory(_memory_bytes(self._image, self._format)):
            return self._decode(on_black=True)

    def shrink(self, pixels: int) -> Image.Image:
        """Decode to at most `pixels` on a side. Call it once.

        A JPEG is decoded at a fraction of its size at once, which takes a fraction of the time.
        """
        self._image.draft(None, (pixels, pixels))
        image = self.decode()
        image.thumbnail((pixels, pixels))
        return image

    def digest(self) -> tuple[Size, bytes]:
        """Decode, and return the size and a hash of the pixels: all that stays in memory. Call it once."""
        with _memory(_memory_bytes(self._image, self._format)):
            image = self._decode()
            pixels = hashlib.blake2b()
            for top in range(0, image.height, STRIP_ROWS):
                pixels.update(image.crop((0, top, image.width, min(top + STRIP_ROWS, image.height))).tobytes())
            return Size(*image.size), pixels.digest()

    def _decode(self, on_black: bool = False) -> Image.Image:
        # A PNG that `size` has failed to decode is in no state to be decoded.
        again = self._format == "PNG" and self._oriented
        image = _open(self._data, self._format) if again else self._image
        # Two images at a time is what there is memory for.
        del self._image, self._data
        try:
            if isinstance(image.fp, TimedBytes):
                image.fp.restart(DECODE_SECONDS)
            image.load()
            turn = _TURN.get(self._orientation(image))
            if image.mode.startswith(("I", "F")):
                image = _eight_bits(image)
            elif image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            alpha = image.getchannel("A") if on_black and "A" in image.getbands() else None
            image = image.convert("RGB")
            if alpha is not None:
                image = Image.composite(image, Image.new("RGB", image.size), alpha)
        except BadImage:
            raise
        except TooSlow as error:
            raise BadImage(str(error)) from None
        except Exception as error:
            raise _damaged(error) from error
        return image if turn is None else image.transpose(turn)

    def _orientation(self, image: ImageFile.ImageFile) -> int:
        """EXIF orientation; 1 when it cannot be read."""
        if not self._oriented:
            return 1
        try:
            return int(image.getexif().get(_ORIENTATION_TAG, 1))
        except Exception:  # PIL raises all kinds on broken EXIF, which is no reason to refuse the picture
            return 1


def decode_image(data: bytes) -> Image.Image:
    """Decode to RGB with EXIF orientation applied and alpha dropped, as diffusers' `load_image` does.

    Animations give their first frame; 16-bit gray is scaled to 8 bits. Raises BadImage for formats other than PNG,
    JPEG, WebP, GIF, BMP, TIFF and AVIF, for what EncodedImage refuses, for damaged data, and for what takes too long.
    """
    return EncodedImage(data).decode()


def _open(data: bytes, kind: str | None) -> ImageFile.ImageFile:
    """Read the header, without PIL's process-wide limit of pixels, which warns before it refuses."""
    reader = READERS.get(kind or "")
    if reader is None:
        what = foreign_format(data)
        raise BadImage(f"not a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF image{what and f': {what}'}")
    if kind == "TIFF":
        check_tiff(data)
    try:
        image = reader(TimedBytes(data))
    except TooSlow as error:
        raise BadImage(str(error)) from None
    except Exception as error:
        raise _damaged(error) from error
    _check_size(image, kind, data)
    return image


def _check_size(image: ImageFile.ImageFile, kind: str | None, data: bytes) -> None:
    width, height = image.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise BadImage(
            f"{width} x {height} pixels is too large; the limit is {MAX_SIDE} on a side and "
            f"{MAX_PIXELS // 1_000_000} megapixels"
        )
    if min(width, height) < 1:
        raise BadImage(f"{width} x {height} pixels is not an image")
    if _memory_bytes(image, kind) > MAX_MEMORY:
        raise BadImage(
            f"{width} x {height} pixels of this kind ({kind}, {image.mode}) take {_memory_bytes(image, kind) >> 20} MB "
            f"to decode; the limit is {MAX_MEMORY >> 20} MB; save it smaller, or as PNG or baseline JPEG"
        )
    if kind == "JPEG" and width * height * (scans := jpeg_scans(data)) > MAX_SCANNED_PIXELS:
        raise BadImage(f"{scans} scans over {width} x {height} pixels take too long to decode; save it again")


def _memory_bytes(image: ImageFile.ImageFile, kind: str | None) -> int:
    """Bytes of memory that decoding takes at its peak."""
    work = _PROGRESSIVE_BYTES if "progressive" in image.info else _WORK_BYTES.get(kind or "", _COPIES_BYTES)
    return image.width * image.height * work


_free_memory, _memory_freed = MAX_MEMORY, Condition()


@contextmanager
def _memory(size: int) -> Generator[None]:
    """Context that has `size` bytes, at most MAX_MEMORY, of the memory for images that are decoded at once."""
    global _free_memory
    with _memory_freed:
        _memory_freed.wait_for(lambda: _free_memory >= size)
        _free_memory -= size
    try:
        yield
    finally:
        with _memory_freed:
            _free_memory += size
            _memory_freed.notify_all()


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray (modes I;16, I) to 8 bits: PIL's own conversion clips everything above 255 to white."""
    scaled = Image.new("L", image.size)
    for top in range(0, image.height, STRIP_ROWS):
        values = np.asarray(image.crop((0, top, image.width, min(top + STRIP_ROWS, image.height))))
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise BadImage("32-bit pixels are not supported; save it with 8 or 16 bits")
        strip = ((values.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)
        scaled.paste(Image.fromarray(strip), (0, top))
    return scaled


def _damaged(error: Exception) -> BadImage:
    return BadImage(f"the image is damaged or cut off ({shorten(str(error)) or type(error).__name__})")


def load_control(url_or_path: str, base: Path | None, downloads: Downloads) -> Image.Image:
    """Load a sample's control image, found as in `fetch_control`, as RGB. Raises BadImage naming it."""
    data = fetch_control(url_or_path, downloads, base)
    try:
        return decode_image(data)
    except BadImage as error:
        raise BadImage(f"{shorten(url_or_path)}: {error}") from error
