"""Pillow's readers of image formats, bounded in time and without Pillow's process-wide switches.

Other node packs set `ImageFile.LOAD_TRUNCATED_IMAGES`, with which half a picture becomes one that is half gray.
"""

from __future__ import annotations

import io
import threading
import time
from types import FunctionType, SimpleNamespace

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

try:
    from PIL import AvifImagePlugin
except ImportError:
    AvifImagePlugin = None


HEADER_SECONDS, DECODE_SECONDS = 2.0, 5.0
"""CPU time for reading a header, and for decoding. Measured: a millisecond, and 2 seconds for the largest picture."""


BLOCK_BYTES = 1 << 16
"""Bytes that are decoded between two looks at the clock: Pillow's own default, which is a switch too."""


class TooSlow(Exception):
    """Reading an image takes too much time."""


class TimedBytes(io.BytesIO):
    """Bytes that can be read for some seconds of a thread's CPU time only; then reading raises TooSlow."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.restart(HEADER_SECONDS)

    def restart(self, seconds: float) -> None:
        """Start the time anew, in the current thread."""
        self._seconds = seconds
        self._thread, self._end = threading.get_ident(), time.thread_time() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as BytesIO does."""
        if threading.get_ident() != self._thread:
            self.restart(self._seconds)
        elif time.thread_time() > self._end:
            raise TooSlow(f"it takes more than {self._seconds:g} seconds to decode")
        return super().read(size)


def _with_globals(function: FunctionType, **values: object) -> FunctionType:
    """Copy a function with other global values. Pillow has no argument for its switches, and setting them for the time
    of a call would change what other threads read."""
    return FunctionType(
        function.__code__,
        {**function.__globals__, **values},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


_SWITCHES_OFF = {
    "ImageFile": SimpleNamespace(**{**vars(ImageFile), "LOAD_TRUNCATED_IMAGES": False}),
    # Our own limit on pixels is the stricter one, and does not warn.
    "Image": SimpleNamespace(**{**vars(Image), "_decompression_bomb_check": lambda *_, **__: None}),
    "LOADING_STRATEGY": GifImagePlugin.LoadingStrategy.RGB_AFTER_FIRST,
    "READ_LIBTIFF": False,
}


class _Strict(ImageFile.ImageFile):
    """Image file of which all data is decoded without an error, or none."""

    load = _with_globals(ImageFile.ImageFile.load, LOAD_TRUNCATED_IMAGES=False)


def _strict(plugin: type[ImageFile.ImageFile]) -> type[ImageFile.ImageFile]:
    methods = {
        name: _with_globals(method, **_SWITCHES_OFF)
        for name, method in vars(plugin).items()
        if isinstance(method, FunctionType)
    }
    block = {"decodermaxblock": property(lambda _: BLOCK_BYTES, lambda *_: None)}
    bases = (plugin, _Strict)  # each plugin is a subclass of ImageFile, so that this order can be made
    return type(f"Strict{plugin.__name__}", bases, methods | block)  # pyright: ignore[reportGeneralTypeIssues] - see above


READERS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": _strict(PngImagePlugin.PngImageFile),
    "JPEG": _strict(JpegImagePlugin.JpegImageFile),
    "WebP": _strict(WebPImagePlugin.WebPImageFile),
    "GIF": _strict(GifImagePlugin.GifImageFile),
    "BMP": _strict(BmpImagePlugin.BmpImageFile),
    "TIFF": _strict(TiffImagePlugin.TiffImageFile),
}
"""Readers by format. Called directly, not by `Image.open`: no other format is ever parsed."""


if AvifImagePlugin is not None:
    READERS["AVIF"] = _strict(AvifImagePlugin.AvifImageFile)
