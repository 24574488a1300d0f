"""Decoding of images to RGB, with the safety limits on pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ..errors import BadImage
from .downloads import Downloads
from .image_refs import fetch_control, shorten
from .resize import Size

try:
    from PIL import AvifImagePlugin
except ImportError:
    AvifImagePlugin = None


MAX_PIXELS = 100_000_000
"""A judgement: above every camera for training images, and 300 MB decoded."""


MAX_SIDE = 32_768
"""A judgement: more than any photograph has."""


_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_ORIENTATION_TAG = 0x0112


_PNG_ORIENTATION_MARKS = (b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Beginnings of PNG texts that may hold an orientation."""


class EncodedImage:
    """An image whose header is read, so that its size is known before its pixels are decoded."""

    def __init__(self, data: bytes) -> None:
        """Read the header. Raises BadImage for unsupported formats and sizes over MAX_PIXELS or MAX_SIDE."""
        self._data = data
        self._image = _open(data)
        # PIL decodes a whole PNG to look for an orientation, so only where one may be.
        self._marked_png = self._image.format == "PNG" and _png_may_be_turned(data)

    @property
    def size(self) -> Size:
        """Size of the image that `decode` returns, with the EXIF orientation applied."""
        image = self._image
        turned = image.format != "TIFF" and self._orientation(image) >= 5
        return Size(image.height, image.width) if turned else Size(*image.size)

    def decode(self) -> Image.Image:
        """Decode as `decode_image` does. Call it once."""
        # A PNG that `size` has failed to decode is in no state to be decoded.
        image = _open(self._data) if self._marked_png else self._image
        try:
            image.load()
            turn = _TURN.get(self._orientation(image))
            if image.mode.startswith(("I", "F")):
                image = _eight_bits(image)
            elif image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            rgb = image.convert("RGB")
        except BadImage:
            raise
        except Exception as error:
            raise _damaged(error) from error
        return rgb if turn is None else rgb.transpose(turn)

    def _orientation(self, image: ImageFile.ImageFile) -> int:
        """EXIF orientation; 1 when it cannot be read."""
        if image.format == "PNG" and not self._marked_png:
            return 1
        try:
            return int(image.getexif().get(_ORIENTATION_TAG, 1))
        except Exception:  # PIL raises all kinds on broken EXIF, which is no reason to refuse the picture
            return 1


def decode_image(data: bytes) -> Image.Image:
    """Decode to RGB with EXIF orientation applied and alpha dropped, as diffusers' `load_image` does.

    Animations give their first frame; 16-bit gray is scaled to 8 bits. Raises BadImage for formats other than PNG,
    JPEG, WebP, GIF, BMP, TIFF and AVIF, sizes over MAX_PIXELS or MAX_SIDE, and damaged data.
    """
    return EncodedImage(data).decode()


def _open(data: bytes) -> ImageFile.ImageFile:
    """Read the header.

    Calls PIL's plugins directly, not `Image.open`: no other format is ever parsed, and our limits replace PIL's
    process-wide decompression bomb limit, which warns before it refuses.
    """
    head = bytes(data[:16])
    plugin = None
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        plugin = PngImagePlugin.PngImageFile
    elif head.startswith(b"\xff\xd8\xff"):
        plugin = JpegImagePlugin.JpegImageFile
    elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        plugin = WebPImagePlugin.WebPImageFile
    elif head.startswith((b"GIF87a", b"GIF89a")):
        plugin = GifImagePlugin.GifImageFile
    elif head.startswith(b"BM"):
        plugin = BmpImagePlugin.BmpImageFile
    elif head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        plugin = TiffImagePlugin.TiffImageFile
    elif head[4:12] in (b"ftypavif", b"ftypavis") and AvifImagePlugin is not None:
        plugin = AvifImagePlugin.AvifImageFile
    if plugin is None:
        page = " (it looks like a web page)" if head.lstrip().lower().startswith((b"<!doctype", b"<html")) else ""
        raise BadImage(f"not a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF image{page}")
    try:
        image = plugin(io.BytesIO(data))
    except Exception as error:
        raise _damaged(error) from error
    width, height = image.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise BadImage(
            f"{width} x {height} pixels is too large; the limit is {MAX_SIDE} on a side and "
            f"{MAX_PIXELS // 1_000_000} megapixels"
        )
    if min(width, height) < 1:
        raise BadImage(f"{width} x {height} pixels is not an image")
    return image


def _png_may_be_turned(data: bytes) -> bool:
    """Tell whether a PNG has a chunk in which PIL would find an orientation."""
    at = 8
    while at + 8 <= len(data):
        kind, content = data[at + 4 : at + 8], at + 8
        if kind == b"eXIf" or (kind.endswith(b"Xt") and data.startswith(_PNG_ORIENTATION_MARKS, content)):
            return True
        at = content + int.from_bytes(data[at : at + 4], "big") + 4
    return False


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray (modes I;16, I) to 8 bits: PIL's own conversion clips everything above 255 to white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise BadImage("32-bit pixels are not supported; save it with 8 or 16 bits")
    return Image.fromarray(((values.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8))


def _damaged(error: Exception) -> BadImage:
    return BadImage(f"the image is damaged or cut off ({shorten(str(error)) or type(error).__name__})")


def load_control(url_or_path: str, base: Path | None, downloads: Downloads) -> Image.Image:
    """Load a sample's control image, found as in `fetch_control`, as RGB. Raises BadImage naming it."""
    data = fetch_control(url_or_path, downloads, base)
    try:
        return decode_image(data)
    except BadImage as error:
        raise BadImage(f"{shorten(url_or_path)}: {error}") from error
