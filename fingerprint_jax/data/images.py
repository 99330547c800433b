"""Files of strangers -> grey 8-bit pixels, and which of them look alike. Only PNG and JPEG are ever decoded."""

import dataclasses
import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
MAX_PIXELS = 4096 * 4096
NEAR = 0.98  # correlation of thumbnails above which two images count as near duplicates

# What Pillow raises on damaged bytes.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    OverflowError,
    MemoryError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
)


@dataclasses.dataclass(frozen=True)
class Info:
    """What a file says beside its pixels."""

    bytes: int
    mode: str  # Pillow's mode of the file: L, P, RGB, I;16 ...
    metadata_bytes: int  # text and binary entries of the header: PNG text, EXIF, colour profile, JPEG comment


def decode(path: Path, image_size: int = 0, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, Info]:
    """Reads one file: -> uint8 [H,W], Info.

    Conversions: colour, palette and CMYK to grey by ITU-R 601 luma; transparency that varies is composited over black,
    constant one is dropped; 1-bit to 0 and 255; 16-bit grey is scaled by 255/65535 and rounded, not clipped (of 16-bit
    colour Pillow reads the high bytes); the EXIF orientation is applied.

    Args:
        path: a .png, .jpg or .jpeg file.
        image_size: side of the square to resize to, by Pillow's antialiased bilinear filter and without regard to the
            aspect ratio; 0 keeps the size.
        max_pixels: larger images are refused before decoding.

    Raises:
        ValueError: the reason in one line, without the path: damaged, animated, too large, unreadable, not the format
            of its name.
    """
    wanted = FORMATS.get(path.suffix.lower())
    if wanted is None:
        raise ValueError("not named .png, .jpg or .jpeg")
    try:
        # 16-bit RGBA without any compression is 8 bytes a pixel.
        if path.stat().st_size > 8 * max_pixels + 2**20:
            raise ValueError(f"{path.stat().st_size} bytes are too many for {max_pixels} pixels (--max_pixels)")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if not data:
        raise ValueError("empty file")
    try:
        _check(data, wanted, path.suffix, max_pixels)
        with Image.open(io.BytesIO(data), formats=[wanted]) as image:
            mode = image.mode
            image.load()
            entries = {key: value for key, value in image.info.items() if key != "transparency"}
            metadata = sum(len(value) for value in entries.values() if isinstance(value, (str, bytes)))
            ImageOps.exif_transpose(image, in_place=True)
            pixels = _grey(image)
    except _Refused as error:
        raise ValueError(str(error)) from None
    except _DAMAGED as error:
        raise ValueError(printable(f"damaged: {error}")) from None
    if image_size and pixels.shape != (image_size, image_size):
        resized = Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BILINEAR)
        pixels = np.asarray(resized)
    return pixels, Info(len(data), mode, metadata)


def printable(text: str) -> str:
    """One line, whatever the names in it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class _Refused(Exception):
    pass


def _check(data: bytes, wanted: str, suffix: str, max_pixels: int) -> None:
    # Each costs milliseconds and a megabyte holds thousands; sound files have one profile, and about ten scans if progressive.
    marker, what = (b"\xff\xda", "scans") if data.startswith(b"\xff\xd8") else (b"iCCP", "colour profiles")
    if data.count(marker) > 100:
        raise _Refused(f"more than 100 {what}, a file made to waste time")
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG", "JPEG"])
    except UnidentifiedImageError:
        raise _Refused("neither a PNG nor a JPEG inside, or its header is damaged") from None
    except Image.DecompressionBombError:
        raise _Refused("more pixels than Pillow opens, some 178 million") from None
    with image:
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise _Refused(f"{frames} frames, one is expected")
        if image.format != wanted:
            raise _Refused(f"a {image.format} under a {suffix} name")
        if image.width * image.height > max_pixels:
            raise _Refused(f"{image.width}x{image.height} is more than {max_pixels} pixels (--max_pixels)")
        image.verify()  # `load` skips the checksums of the pixels and does not miss the end of the file


def _grey(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        # Pillow's own conversion would clip everything above 255. 65535 = 255 * 257.
        return ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.mode == "P" and np.asarray(image).max() >= (len(image.palette.palette) // 3 if image.palette else 0):
        raise ValueError("a pixel has no colour in the palette")  # Pillow makes it black, or trips over itself
    if image.has_transparency_data:
        image = image.convert("RGBA")
        least, most = image.getchannel("A").getextrema()
        if least != most:
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.asarray(image.convert("L"))


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Centred 32x32 box averages of norm 1: uint8 [H,W] -> float32 [1024]; the product of two is their correlation."""
    small = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BOX), np.float32).ravel()
    small = small - small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-6)


def twins(thumbnails: np.ndarray, digests: Sequence[str], cells: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Exact and near duplicates between cells (a split and class each).

    For every image and every other cell the closest image there, where it is equal or correlates above NEAR.

    Args:
        thumbnails: [N,1024] of `thumbnail`.
        digests: [N] of the pixels.
        cells: [N] int.

    Yields:
        (image, its twin, correlation); 1 for equal pixels.
    """
    members = {cell: np.flatnonzero(cells == cell) for cell in np.unique(cells)}
    for b, others in members.items():
        columns = thumbnails[others].T
        first = {digests[j]: j for j in reversed(others.tolist())}
        for a, own in members.items():
            for start in range(0, len(own) if a != b else 0, 1024):
                block = own[start : start + 1024]
                similarity = thumbnails[block] @ columns
                nearest = similarity.argmax(axis=1)
                for row, i in enumerate(map(int, block)):
                    if digests[i] in first:
                        yield i, first[digests[i]], 1.0
                    elif similarity[row, nearest[row]] > NEAR:
                        yield i, int(others[nearest[row]]), float(similarity[row, nearest[row]])
