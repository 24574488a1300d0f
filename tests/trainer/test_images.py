from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import GifImagePlugin, Image, ImageFile, ImageOps, PngImagePlugin

from trainer.data import image_refs, images, pillow
from trainer.data.downloads import Downloads
from trainer.data.image_refs import LINK_VARIABLE, ImageRef, image_ref, read_bytes
from trainer.data.images import EncodedImage, decode_image, load_control
from trainer.data.resize import Size
from trainer.errors import BadImage

from .hostile_pictures import HOSTILE, encoded, png_chunk
from .peak import peak_memory


def picture(width: int = 12, height: int = 8, mode: str = "RGB") -> Image.Image:
    """A picture without symmetry, so that every turn of it looks different."""
    y, x = np.mgrid[0:height, 0:width]
    values = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + 2 * y) * 4 % 256], axis=-1)
    return Image.fromarray(values.astype(np.uint8)).convert(mode)


def read_size(data: bytes) -> Size:
    return EncodedImage(data).size


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 100))]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in [*chunks, (b"IEND", b"")]
    )
    return b"\x89PNG\r\n\x1a\n" + body


# references


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("inputs/001.jpg", "path", "inputs/001.jpg"),
        ("inputs\\sub\\001.jpg", "path", "inputs/sub/001.jpg"),
        ("./a/../b.png", "path", "./a/../b.png"),
        ("日本 語/写真.png", "path", "日本 語/写真.png"),
        ("..hidden/..png", "path", "..hidden/..png"),
        ("https://example.org/a b.png?x=1", "url", "https://example.org/a b.png?x=1"),
        ("HTTP://EXAMPLE.ORG/a.png", "url", "HTTP://EXAMPLE.ORG/a.png"),
        (b"\x89PNG", "bytes", b"\x89PNG"),
        ({"bytes": b"abc", "path": "/absolute/ignored.png"}, "bytes", b"abc"),
        ({"bytes": None, "path": "a.png"}, "path", "a.png"),
        ({"path": "a.png"}, "path", "a.png"),
        ({"bytes": b"abc"}, "bytes", b"abc"),
    ],
)
def test_references_of_every_form(value, kind, expected):
    assert image_ref(value) == ImageRef(kind, expected)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "is null"),
        ({"bytes": None, "path": None}, "is null"),
        ({"bytes": b"", "path": "a.png"}, "0 bytes"),
        (b"", "0 bytes"),
        ("", "empty text"),
        ("  \t", "empty text"),
        (17, "int"),
        (["a.png"], "list"),
        ({"url": "a.png"}, "dict"),
        ("/etc/passwd", "absolute"),
        ("\\windows\\win.ini", "absolute"),
        ("C:\\images\\a.png", "absolute"),
        ("c:a.png", "absolute"),
        ("C:/images/a.png", "absolute"),
        ("\\\\server\\share\\a.png", "absolute"),
        ("//server/share/a.png", "absolute"),
        ({"bytes": None, "path": "/home/me/a.png"}, "absolute"),
        ("../../etc/passwd", "leaves the images folder"),
        ("a/../../b.png", "leaves the images folder"),
        ("a\\..\\..\\b.png", "leaves the images folder"),
        ("file:///etc/passwd", "file: is not allowed"),
        ("FILE:/etc/passwd", "FILE: is not allowed"),
        ("ftp://example.org/a.png", "ftp: is not allowed"),
        ("data:image/png;base64,AAAA", "data: is not allowed"),
        ("http:///a.png", "no host"),
        ("http://[::1/a.png", "not a valid URL"),
        ("a\0b.png", "control characters"),
        ("a\nb.png", "control characters"),
    ],
)
def test_references_that_are_refused(value, says):
    with pytest.raises(BadImage, match=says.replace("(", "\\(")):
        image_ref(value)


def test_files_below_the_root_are_read_and_no_others(tmp_path):
    root = tmp_path / "data"
    (root / "in").mkdir(parents=True)
    (root / "in" / "ä b.png").write_bytes(b"here")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "out").symlink_to(tmp_path)
    downloads = Downloads()
    assert read_bytes(image_ref("in\\ä b.png"), root, downloads) == b"here"
    for path in ("link.png", "out/secret.png"):
        with pytest.raises(
            BadImage, match=rf"is a link that leaves the images folder, to .*secret\.png.*{LINK_VARIABLE}"
        ):
            read_bytes(image_ref(path), root, downloads)
    with pytest.raises(BadImage, match=r"none\.png: no such file below"):
        read_bytes(image_ref("none.png"), root, downloads)
    with pytest.raises(BadImage, match="not a file"):
        read_bytes(image_ref("in"), root, downloads)
    (root / "zero.png").touch()
    with pytest.raises(BadImage, match=r"zero\.png: is empty \(0 bytes\)"):
        read_bytes(image_ref("zero.png"), root, downloads)


def test_links_of_the_hugging_face_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "datasets--me--pairs" / "blobs", tmp_path / "datasets--me--pairs" / "snapshots" / "1f"
    for folder in (blobs, snapshot / "in", tmp_path / "other"):
        folder.mkdir(parents=True)
    (blobs / "ab12").write_bytes(b"content")
    (tmp_path / "other" / "secret").write_bytes(b"secret")
    (snapshot / "in" / "a.png").symlink_to("../../../blobs/ab12")
    (snapshot / "b.png").symlink_to("../../../other/secret")
    downloads = Downloads()
    for root, path in ((snapshot, "in/a.png"), (snapshot / "in", "a.png")):
        assert read_bytes(image_ref(path), root, downloads) == b"content"
    with pytest.raises(BadImage, match="is a link that leaves"):
        read_bytes(image_ref("b.png"), snapshot, downloads)
    (blobs / "ab12").unlink()
    blobs.rmdir()
    blobs.symlink_to(tmp_path / "other")
    (snapshot / "c.png").symlink_to("../../blobs/secret")
    with pytest.raises(BadImage, match="is a link that leaves"):
        read_bytes(image_ref("c.png"), snapshot, downloads)


def test_links_may_lead_where_the_person_allows(tmp_path, monkeypatch):
    for name in ("data", "one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(name.encode())
        (tmp_path / "data" / f"{name}.png").symlink_to(tmp_path / name / "a.png")
    monkeypatch.setenv(LINK_VARIABLE, os.pathsep.join([str(tmp_path / "one"), "", str(tmp_path / "two")]))
    for name in ("data", "one", "two"):
        assert read_bytes(image_ref(f"{name}.png"), tmp_path / "data", Downloads()) == name.encode()
    with pytest.raises(BadImage, match="is a link that leaves"):
        read_bytes(image_ref("three.png"), tmp_path / "data", Downloads())


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(image_refs, "MAX_FILE_BYTES", 2**20)
    (tmp_path / "big.png").write_bytes(bytes(2**20 + 1))
    (tmp_path / "fits.png").write_bytes(bytes(2**20))
    with pytest.raises(BadImage, match="larger than 1 MB"):
        read_bytes(image_ref("big.png"), tmp_path, Downloads())
    with pytest.raises(BadImage, match="larger than 1 MB"):
        read_bytes(image_ref(bytes(2**20 + 1)), tmp_path, Downloads())
    assert len(read_bytes(image_ref("fits.png"), tmp_path, Downloads())) == 2**20


# decoding


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG", "AVIF"])
def test_formats(kind):
    image = picture()
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    data = encoded(image, kind, **options)
    decoded = decode_image(data)
    assert decoded.mode == "RGB"
    assert EncodedImage(data).size == Size(12, 8) == decoded.size
    difference = np.abs(np.asarray(decoded, dtype=int) - np.asarray(image, dtype=int)).mean()
    assert difference <= {"GIF": 12, "JPEG": 4, "AVIF": 12}.get(kind, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_the_size_says_so(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), kind, exif=exif.tobytes() if kind != "TIFF" else exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert decode_image(data).tobytes() == expected.tobytes()
    assert EncodedImage(data).size == decode_image(data).size == ((8, 12) if orientation >= 5 else (12, 8))


@pytest.mark.parametrize("orientation", [0, 9, 32639])
def test_an_orientation_that_there_is_not_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), "JPEG", exif=exif)
    assert EncodedImage(data).size == decode_image(data).size == (12, 8)


def test_sixteen_bit_gray_keeps_its_brightness():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        decoded = np.asarray(decode_image(encoded(Image.fromarray(ramp), kind)))
        assert np.array_equal(decoded[..., 0].ravel(), np.arange(256))


def test_thirty_two_bit_pixels_are_refused():
    for values in (np.full((4, 4), 2**20, np.int32), np.full((4, 4), np.nan, np.float32)):
        with pytest.raises(BadImage, match="32-bit"):
            decode_image(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_other_modes_come_out_as_rgb(mode):
    image = picture(mode=mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    options = {"transparency": b"\x00\x80\xff"} if mode == "P" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode_image(encoded(image, kind, **options))
    assert np.array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode_image(data).getpixel((3, 3)) == (255, 0, 0)


def test_a_huge_header_is_refused_at_once_and_in_silence(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for width, height in [(60_000, 60_000), (40_000, 10), (10, 40_000), (11_000, 9_100), (2**31 - 1, 2**31 - 1)]:
            for look in (decode_image, read_size):
                start = time.perf_counter()
                with pytest.raises(BadImage, match=rf"{width} x {height} pixels is too large"):
                    look(png_header(width, height))
                assert time.perf_counter() - start < 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"<!DOCTYPE html><html></html>",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"BM",
        b"II*\0",
        b"RIFF\0\0\0\0WEBP",
        b"\0\0\0\x20ftypavif",
        png_header(100, 100),
        png_header(0, 5),
        encoded(picture(200, 200), "JPEG")[:1500],
        encoded(picture(200, 200), "PNG")[:400],
        encoded(picture(200, 200), "WEBP", lossless=True)[:100],
        encoded(picture(200, 200), "PPM"),
        encoded(picture(16, 16), "ICO"),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_damaged_and_foreign_data_is_refused(data):
    with pytest.raises(BadImage) as caught:
        decode_image(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_flipped_bytes_never_raise_anything_else(kind):
    data = encoded(picture(40, 30), kind)
    random = np.random.default_rng(3)
    for _ in range(60):
        broken = bytearray(data)
        for place in random.integers(0, len(data), 4):
            broken[place] = random.integers(0, 256)
        for look in (decode_image, read_size):
            with warnings.catch_warnings(), contextlib.suppress(BadImage):
                warnings.simplefilter("ignore", UserWarning)
                look(bytes(broken))


@pytest.mark.slow
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_picture_takes_bounded_memory_and_time(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, says = HOSTILE[what]
    if says:  # what is read in the end may take its time, on a busy machine too
        monkeypatch.setattr(pillow, "HEADER_SECONDS", 0.6)
        monkeypatch.setattr(images, "DECODE_SECONDS", 2)
    data = make()
    with peak_memory() as peak:
        began = time.monotonic()
        if says:
            with pytest.raises(BadImage, match=says):
                decode_image(data)
        else:
            decode_image(data)
        assert time.monotonic() - began < 10
    assert peak[0] < 2**30


def test_only_so_much_is_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pictures that each take more than half of the memory wait for each other, and none for ever."""
    data = encoded(picture(120, 80), "PNG")
    monkeypatch.setattr(images, "_free_memory", 120 * 80 * 8 + 1)
    at_once, most = [0], [0]
    load = EncodedImage._decode

    def counted(image: EncodedImage) -> Image.Image:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.01)
        try:
            return load(image)
        finally:
            at_once[0] -= 1

    monkeypatch.setattr(EncodedImage, "_decode", counted)
    with ThreadPoolExecutor(4) as pool:
        assert all(image.size == (120, 80) for image in pool.map(decode_image, [data] * 8))
    assert most == [1]
    assert len({EncodedImage(data).digest() for _ in range(2)}) == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_the_switches_of_pillow_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a picture is damaged, and a whole one the same, whatever another node pack has set."""
    whole = encoded(picture(200, 200, "P" if kind == "GIF" else "RGB"), kind)
    before = decode_image(whole).tobytes()
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 10)
    monkeypatch.setattr(GifImagePlugin, "LOADING_STRATEGY", GifImagePlugin.LoadingStrategy.RGB_ALWAYS)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    assert decode_image(whole).tobytes() == before
    for part in (0.3, 0.5, 0.9):
        with pytest.raises(BadImage, match="damaged or cut off"):
            decode_image(whole[: int(len(whole) * part)])
    if kind == "PNG":
        at = whole.index(b"IDAT") + 200
        with pytest.raises(BadImage, match="damaged or cut off"):
            decode_image(whole[:at] + bytes(50) + whole[at + 50 :])


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"iTXt", b"note\0\1\0\0\0" + zlib.compress(bytes(2_000_000))),
        png_chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(2_000_000))),
        png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2_000_000))),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + b"no zlib"),
        png_chunk(b"tEXt", b"note\0" + b"x" * 2_000_000),
        png_chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(2_000_000))),
        png_chunk(b"iCCP", b"broken"),
        png_chunk(b"eXIf", b"II*\0 nothing")[:-1] + b"?",
        png_chunk(b"zTXt", b"n\0\0" + zlib.compress(bytes(900_000))) * 100,
    ],
    ids=lambda chunk: f"{chunk[4:8].decode()}{len(chunk)}",
)
def test_metadata_is_no_reason_to_refuse_a_picture(chunk: bytes) -> None:
    data = encoded(picture(), "PNG")
    for at in (33, len(data) - 12):
        assert decode_image(data[:at] + chunk + data[at:]).tobytes() == picture().tobytes()


def test_an_orientation_in_a_text_of_a_png_is_applied() -> None:
    data = encoded(picture(), "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = b"\nexif\n  99\n" + exif.tobytes().hex().encode()
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for chunk in (
        png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)),
        png_chunk(b"tEXt", b"Raw profile type exif\0" + raw),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
        png_chunk(b"eXIf", exif.tobytes()[6:]),
    ):
        turned = data[:33] + chunk + data[33:]
        assert EncodedImage(turned).size == (8, 12)
        assert decode_image(turned).tobytes() == picture().transpose(Image.Transpose.ROTATE_270).tobytes()


@pytest.mark.parametrize("brands", [b"mif1miafavif", b"msf1avifmiaf", b"avifmif1"])
def test_avif_by_any_of_its_brands(brands: bytes) -> None:
    data = encoded(picture(), "AVIF")
    length = int.from_bytes(data[:4], "big")
    major, others = brands[:4], brands[4:]
    box = (16 + len(others)).to_bytes(4, "big") + b"ftyp" + major + bytes(4) + others
    # The offsets in the file count from its start.
    rest = data[length:]
    free = length - len(box)
    padding = (free.to_bytes(4, "big") + b"free" + bytes(free - 8)) if free >= 8 else b""
    assert len(box + padding) == length
    assert decode_image(box + padding + rest).size == (12, 8)


def test_images_a_person_names(tmp_path, monkeypatch):
    picture().save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    downloads = Downloads()
    for name, base in [("a.png", None), (str(tmp_path / "a.png"), None), ("a.png", tmp_path / "elsewhere")]:
        assert load_control(name, base, downloads).tobytes() == picture().tobytes()
    monkeypatch.chdir(Path(sys.prefix))
    assert load_control("a.png", tmp_path, downloads).size == (12, 8)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    for name, says in [("none.png", "no such image file"), ("broken.png", "broken.png: the image is damaged")]:
        with pytest.raises(BadImage, match=says):
            load_control(name, tmp_path, downloads)
    with pytest.raises(BadImage, match="not allowed"):
        load_control("file:///etc/hostname", None, downloads)


def test_no_heavy_library_is_imported():
    code = (
        "import sys; import trainer.data.images, trainer.data.dataset, trainer.data.load_request;"
        "import trainer.config.request; "
        "print(sorted({'torch', 'diffusers', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    root = Path(images.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
