"""Files of strangers -> grey 8-bit pixels. Only PNG and JPEG are decoded here; see medical.py for DICOM and NIfTI."""

import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import re
import struct
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from fingerprint_jax.runtime import files
from fingerprint_jax.runtime.names import printable

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
MAX_PIXELS = 4096 * 4096
NOT_NAMED = "not named .png, .jpg or .jpeg"
NO_IMAGE = "a DICOM without an image"
MAX_FRAMES = 100_000  # of a file
_VOLUMES = {".dcm": "DICOM", ".nii": "NIfTI", ".nii.gz": "NIfTI"}
_EXTENSION = re.compile(r"\.(png|jpe?g|dcm|nii|nii\.gz)$", re.IGNORECASE)

# What files begin with that are images, but not decoded under another name.
_OTHERS = {
    "DICOM": rb".{128}DICM",
    "TIFF": rb"II\*\0|MM\0\*",
    "PNG": rb"\x89PNG",
    "JPEG": rb"\xff\xd8\xff",
    "JPEG 2000": rb"\0{3}\x0cjP  ",
    "BMP": rb"BM.{4}\0{4}",
    "GIF": rb"GIF8",
    "WebP": rb"RIFF.{4}WEBP",
}
# Each costs milliseconds and a megabyte holds thousands; sound files have one, and about ten scans if progressive.
_REPEATED = {b"\xda": "scans", b"\xe1Exif\0\0": "EXIF segments", b"iCCP": "colour profiles"}
_MOST_REPEATED = 100
_MOST_PARTS = 100_000  # segments or chunks
_MOST_EXIF = 2**20  # bytes; one segment of a JPEG holds at most 2**16
# Entries may all name the same bytes, and Pillow has a copy of them for each; of an index it has a number for each two bytes.
_MOST_ENTRIES, _MOST_COPIED = {"EXIF": 500, "MP index": 16}, 2**25
# Markers of a JPEG but for restarts and TEM, which have no length; in the pixels a byte 0xff is followed by a zero.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
# Those that Pillow takes for markers without a length, and the decoder for an error where no scan has begun.
_NO_SEGMENT = re.compile(rb"\xff[\xc8\xd8\xd9\xf0-\xfd]")
# What an EXIF orientation asks for; 1 is as it is.
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow, and others that read files of images, raise on damaged bytes.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    OverflowError,
    MemoryError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    ZeroDivisionError,
    struct.error,
)


@dataclasses.dataclass(frozen=True)
class Info:
    """What a file says beside its pixels."""

    bytes: int
    mode: str  # Pillow's mode of the file: L, P, RGB, I;16 ...
    metadata_bytes: int  # text and binary entries of the header: PNG text, EXIF, colour profile, JPEG comment
    deep: tuple[int, int] | None = None  # of 16-bit files the smallest and the largest value ...
    common: int = 0  # ... and the one that 99 of 100 pixels do not exceed


def decode(path: Path, image_size: int = 0, max_pixels: int = MAX_PIXELS, bits: int = 16) -> tuple[np.ndarray, Info]:
    """Reads one file: -> uint8 [H,W], Info.

    Conversions: colour, palette and CMYK to grey by ITU-R 601 luma; transparency that varies is composited over black,
    constant one is dropped; 1-bit to 0 and 255; 16-bit grey is scaled by 255/(2^bits - 1) and rounded, not clipped (of 16-bit
    colour Pillow reads the high bytes); the EXIF orientation is applied.

    Args:
        path: a .png, .jpg or .jpeg file.
        image_size: side of the square to resize to, by Pillow's antialiased bilinear filter and without regard to the
            aspect ratio; 0 keeps the size.
        max_pixels: larger images are refused before decoding.
        bits: of the values in 16-bit files, 8 to 16.

    Raises:
        ValueError: the reason in one line, without the path: damaged, animated, too large, unreadable, not the format
            of its name, a value of more than `bits`. It is NOT_NAMED where neither name nor first bytes are those of an image.
    """
    wanted = FORMATS.get(path.suffix.lower())
    if wanted is None:
        raise ValueError(NOT_NAMED + _inside(path))
    most = 8 * max_pixels + 2**20  # 16-bit RGBA without any compression is 8 bytes a pixel
    try:
        if (size := path.stat().st_size) > most:
            raise ValueError(f"{size} bytes are too many for {max_pixels} pixels (--max_pixels)")
        data = files.read_bytes(path, most)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(str(error).removeprefix(f"{path}: ")) from None
    if not data:
        raise ValueError("empty file")
    try:
        _check(data, wanted, path.suffix, max_pixels)
        with Image.open(io.BytesIO(data), formats=[wanted]) as image:
            mode = image.mode
            image.load()
            entries = {key: value for key, value in image.info.items() if key != "transparency"}
            metadata = sum(len(value) for value in entries.values() if isinstance(value, (str, bytes)))
            deep, common = _deep(image, data)
            turn = _TURNS.get(_orientation(image))
            pixels = _grey(image if turn is None else image.transpose(turn), bits, deep)
    except Refused as error:
        raise ValueError(str(error)) from None
    except DAMAGED as error:
        raise ValueError(printable(f"damaged: {error}")) from None
    if image_size and pixels.shape != (image_size, image_size):
        resized = Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BILINEAR)
        pixels = np.asarray(resized)
    return pixels, Info(len(data), mode, metadata, deep, common)


def volume(path: Path) -> str:
    """DICOM or NIfTI, by the name of a file or else by its first bytes; nothing where it is neither."""
    if path.suffix.lower() in FORMATS:
        return ""
    named = next((kind for suffix, kind in _VOLUMES.items() if path.name.lower().endswith(suffix)), "")
    return named or ("DICOM" if _kind(path) == "DICOM" else "")


def bare(name: str) -> str:
    """A name without the extension of an image or a volume; other points, as in an UID, stay."""
    return _EXTENSION.sub("", name)


def _inside(path: Path) -> str:
    """What kind of image is in a file that is not named like one; nothing where there is none."""
    kind = _kind(path)
    return f": a {kind} inside" if kind else ""


def _kind(path: Path) -> str:
    """What kind of image a file is by its first bytes; nothing where it is none that is known."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        return ""
    return next((kind for kind, start in _OTHERS.items() if re.match(start, head, re.DOTALL)), "")


def save(path: Path, pixels: np.ndarray) -> None:
    """Writes grey pixels, uint8 [H,W], as a PNG file, whole or not."""
    with files.replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def digest(pixels: np.ndarray) -> str:
    """SHA-256 of shape and pixels [H,W]."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def described(id: str, label: int, group: str, digest: str) -> bytes:
    """What of a record the fingerprint of its split is made of."""
    return json.dumps([id, label, group, digest]).encode()


class Refused(ValueError):
    """Why a file is refused, in one line without its path."""


@contextlib.contextmanager
def sound(*more: type[Exception]) -> Generator[None]:
    """What a library raises on a damaged file, or `more`, becomes a Refused without its words: they may quote the file."""
    try:
        yield
    except Refused:
        raise
    except (*DAMAGED, *more) as error:
        if isinstance(error, OSError) and error.strerror:
            raise Refused(f"cannot be read: {error.strerror}") from None
        raise Refused(f"damaged or cut short ({type(error).__name__})") from None


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height that a JPEG says it has, of any process; nothing is decoded.

    Raises Refused where it says none, or has more scans than a sound one.
    """
    size, scans = None, 0
    for name, content in _segments(data) if data.startswith(b"\xff\xd8") else ():
        scans += name == b"\xda"
        if scans > _MOST_REPEATED:
            raise Refused(f"more than {_MOST_REPEATED} scans, a file made to waste time")
        if b"\xc0" <= name <= b"\xcf" and name not in (b"\xc4", b"\xc8", b"\xcc"):
            if size:
                raise Refused("damaged: a second frame in a JPEG")
            size = int.from_bytes(content[3:5], "big"), int.from_bytes(content[1:3], "big")
    if not size:
        raise Refused("no JPEG inside, or its header is damaged")
    return size


def _check(data: bytes, wanted: str, suffix: str, max_pixels: int) -> None:
    repeated: collections.Counter[bytes] = collections.Counter()
    exif = bytearray()
    parts = _segments(data) if data.startswith(b"\xff\xd8") else ((name, b"") for name in _chunks(data))
    for count, (name, content) in enumerate(parts, 1):
        kind = name + content[:6] if name == b"\xe1" else name
        repeated[kind] += kind in _REPEATED
        if repeated[kind] > _MOST_REPEATED:
            raise Refused(f"more than {_MOST_REPEATED} {_REPEATED[kind]}, a file made to waste time")
        if count > _MOST_PARTS:
            raise Refused(f"more than {_MOST_PARTS} segments or chunks, a file made to waste time")
        if kind == b"\xe1Exif\0\0":
            exif += content[6:]  # of several Pillow makes one
        if name == b"\xe2" and content.startswith(b"MPF\0"):
            _check_directory(content[4:], "MP index")
    _check_directory(bytes(exif), "EXIF")  # Pillow reads it when it opens a JPEG
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG", "JPEG"])
    except UnidentifiedImageError:
        raise Refused("neither a PNG nor a JPEG inside, or its header is damaged") from None
    except Image.DecompressionBombError:
        raise Refused("more pixels than Pillow opens, some 178 million") from None
    with image:
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise Refused(f"{frames} frames, one is expected")
        if image.format != wanted:
            raise Refused(f"a {image.format} under a {suffix} name")
        if image.width * image.height > max_pixels:
            raise Refused(f"{image.width}x{image.height} is more than {max_pixels} pixels (--max_pixels)")
        image.verify()  # `load` skips the checksums of the pixels and does not miss the end of the file


def _check_directory(data: bytes, what: str) -> None:
    """Refuses EXIF data, or what is laid out like it, of which Pillow would take much memory."""
    if (size := len(data.removeprefix(b"Exif\0\0"))) > _MOST_EXIF:
        raise Refused(f"{what} of {size} bytes, at most {_MOST_EXIF} are read")
    while data.startswith(b"Exif\0\0"):
        data = data[6:]
    order: Literal["big", "little"] = "big" if data.startswith(b"MM") else "little"
    at = int.from_bytes(data[4:8], order)
    entries = min(int.from_bytes(data[at : at + 2], order), (len(data) - at) // 12)
    if entries > _MOST_ENTRIES[what] or entries * len(data) > _MOST_COPIED:
        raise Refused(f"{what} of {entries} entries, a file made to waste memory")


def _orientation(image: Image.Image) -> object:
    """The EXIF orientation of an image that is loaded; what else its EXIF data hold is not looked at."""
    if "exif" not in image.info and (text := image.info.get("Raw profile type exif")):
        image.info["exif"] = bytes.fromhex("".join(text.split("\n")[3:]))  # as ImageMagick keeps it in a PNG
    _check_directory(image.info.get("exif", b""), "EXIF")
    return image.getexif().get(ExifTags.Base.Orientation)


def _segments(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Marker and content of the segments of a JPEG up to the end of the image, as its decoder meets them.

    There is none within a segment, and none behind the end.
    """
    at, begun = 2, False
    while found := _MARKER.search(data, at):
        if not begun and _NO_SEGMENT.match(found[0]):
            raise Refused(f"damaged: marker {found[0].hex()} before any scan")
        if found[0] == b"\xff\xd9":
            return
        begun |= found[0] == b"\xff\xda"
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        yield found[0][1:], data[found.end() + 2 : at]


def _chunks(data: bytes) -> Iterator[bytes]:
    """The names of the chunks of a PNG up to its end."""
    at, name = 8, b""
    while at < len(data) and name != b"IEND":
        name = data[at + 4 : at + 8]
        yield name
        at += int.from_bytes(data[at : at + 4], "big") + 12


def _deep(image: Image.Image, data: bytes) -> tuple[tuple[int, int] | None, int]:
    """`deep` and `common` of a file; of colour as far as the high bytes tell; None and 0 of files of 8 bits."""
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        return (int(pixels.min()), int(pixels.max())), int(np.quantile(pixels, 0.99, method="lower"))
    if image.format != "PNG" or data[24] != 16:  # the bit depth in IHDR, which is the first chunk
        return None, 0
    colour = np.asarray(image.convert("L" if image.mode.startswith("L") else "RGB"))
    high = int(colour.max()) * 256 + 255
    return (int(colour.min()) * 256, high), high


def _grey(image: Image.Image, bits: int, deep: tuple[int, int] | None) -> np.ndarray:
    most = 2**bits - 1
    if image.mode.startswith("I"):
        if deep and deep[1] > most:
            raise Refused(f"its largest value is {deep[1]}, {bits} bits hold {most} (--bits)")
        # Pillow's own conversion would clip everything above 255.
        return ((np.asarray(image).astype(np.uint32) * 510 + most) // (2 * most)).astype(np.uint8)
    if deep and bits < 16:
        raise Refused(f"16-bit colour, of which only the high bytes are read: --bits={bits} is for grey, convert it")
    if image.mode == "P" and np.asarray(image).max() >= (len(image.palette.palette) // 3 if image.palette else 0):
        raise ValueError("a pixel has no colour in the palette")  # Pillow makes it black, or trips over itself
    if image.has_transparency_data:
        image = image.convert("RGBA")
        least, most = image.getchannel("A").getextrema()
        if least != most:
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.asarray(image.convert("L"))
