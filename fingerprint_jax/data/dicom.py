"""DICOM files of strangers -> values of their grey frames, by pydicom. What one says of a patient goes no further than `Head`."""

import dataclasses
import functools
import io
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import config, encaps, uid
from pydicom.dataelem import RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info, read_sequence
from pydicom.pixels.decoders.base import get_decoder
from pydicom.tag import Tag

from fingerprint_jax.data import images
from fingerprint_jax.runtime import files

# Else warnings quote what files say.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

_MOST_HEADER = 2**25  # bytes before the pixels; a thousand frames have some two MiB, or thirty where a scanner adds its own
_MOST_ITEMS = 100_000  # of sequences; pydicom makes an object of each
_MOST_READ = 1_000_000  # elements and items of sequences, however they are marked
_MOST_GROUPS = 2**23  # bytes of the functional groups that are read
_ITEMS = b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00"
_PIXELS = b"\xe0\x7f", b"\x7f\xe0"  # their group
_NO_PIXELS = "no pixels in it, or no integer ones"
_NATIVE = uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian
_JPEG = uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1
_JPEG_2000 = uid.JPEG2000Lossless, uid.JPEG2000
_SYNTAXES = (*_NATIVE, uid.RLELossless, *_JPEG, *_JPEG_2000)

# All that is read of a file but for its pixels: what follows of them decides about the pixels, and `Head` has the rest.
_TAGS = [
    *("PatientID", "SeriesInstanceUID", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient"),
    *("Modality", "BurnedInAnnotation", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]

# All that is read of the functional groups of a frame.
_GROUPS = {
    Tag(name)
    for name in (
        *("PlanePositionSequence", "PlaneOrientationSequence"),
        *("PixelValueTransformationSequence", "FrameVOILUTSequence"),
    )
}

# What pydicom and its decoders raise beside what others do.
_sound = functools.partial(images.sound, InvalidDicomError, BytesLengthException, RuntimeError)


@dataclasses.dataclass(frozen=True)
class Head:
    """What a file says before its pixels. `patient` and `series` are compared in this process and never written."""

    path: Path
    dataset: pydicom.Dataset  # with the tags and groups above alone
    syntax: uid.UID
    shape: tuple[int, int]  # H, W
    frames: int
    patient: str
    series: str
    number: int  # InstanceNumber, 0 without one

    @property
    def inverted(self) -> bool:
        """Whether the smallest value is white."""
        return self.dataset.PhotometricInterpretation == "MONOCHROME1"

    @property
    def hounsfield(self) -> bool:
        """Whether the values are of CT, by slope and intercept."""
        with _sound():
            return self.dataset.get("Modality") == "CT" and None not in self._rescale(0)

    def depth(self, frame: int) -> float | None:
        """Where a frame lies along the normal of its plane, in mm; None where the file does not say."""
        with _sound():
            position = _value(self.dataset, frame, "PlanePositionSequence", "ImagePositionPatient")
            plane = _value(self.dataset, frame, "PlaneOrientationSequence", "ImageOrientationPatient")
            if position is None or plane is None or len(position) != 3 or len(plane) != 6:
                return None
            found = float(np.cross(np.float64(plane[:3]), np.float64(plane[3:])) @ np.float64(position))
            return found if math.isfinite(found) else None

    def as_it_is(self, frame: int) -> bool:
        """Whether the stored values are grey levels: 8 bits, not signed, not scaled."""
        with _sound():
            grey = self.dataset.BitsStored == 8 and not self.dataset.get("PixelRepresentation")
            return grey and self.scale(frame) == (1, 0)

    def window(self, frame: int) -> tuple[float, float]:
        """The values of a frame that its own window makes black and white (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3.2).

        Raises ValueError where it has none, or one that is not linear.
        """
        names = "WindowCenter", "WindowWidth", "VOILUTFunction"
        with _sound():
            center, width, function = (_value(self.dataset, frame, "FrameVOILUTSequence", name) for name in names)
            if center is None or width is None:
                raise images.Refused("no window in it: give --window=centre,width")
            exact = function == "LINEAR_EXACT"
            if not exact and (function or "LINEAR") != "LINEAR":
                raise images.Refused("its window is no linear one: give --window=centre,width")
            middle, half = float(_first(center)) - (0 if exact else 0.5), (float(_first(width)) - (0 if exact else 1)) / 2
            if not (math.isfinite(middle) and math.isfinite(half) and middle - half < middle + half):
                raise images.Refused(f"its window has the width {float(_first(width)):g}: give --window=centre,width")
            return middle - half, middle + half

    def scale(self, frame: int) -> tuple[float, float]:
        """Slope and intercept of a frame; 1 and 0 where the file has none. Raises ValueError where one is no number."""
        with _sound():
            found = zip(self._rescale(frame), (1.0, 0.0), strict=True)
            slope, intercept = (default if value is None else float(_first(value)) for value, default in found)
            if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
                raise images.Refused(f"rescale slope {slope:g} and intercept {intercept:g}")
            return slope, intercept

    def values(self, frames: Sequence[int]) -> Iterator[np.ndarray]:
        """Frames, in ascending order, by slope and intercept: float64 [H,W] each, in Hounsfield units where the file has them.

        Raises ValueError as `read`.
        """
        with _sound():
            native = self.frames * self.shape[0] * self.shape[1] * (self.dataset.BitsAllocated // 8)
            data = files.read_bytes(self.path)
            if len(data) > _MOST_HEADER + 2 * native + 2**20:
                many = f"{self.frames} frames of {self.shape[1]}x{self.shape[0]}"
                raise images.Refused(f"{len(data):,} bytes are too many for {many}")
            _refuse_items(data)
            dataset = pydicom.dcmread(_Counted(data), specific_tags=[*_TAGS, "PixelData"])
            if "PixelData" not in dataset:
                raise images.Refused(_NO_PIXELS)
            decoder, native = get_decoder(self.syntax), self.syntax in _NATIVE
            # Once for all frames: the decoder would look for each from the first fragment on.
            encoded = enumerate(() if native else encaps.generate_frames(dataset.PixelData, number_of_frames=self.frames))
            if not native:
                dataset.NumberOfFrames = 1
        for frame in frames:
            with _sound():
                if not native:
                    one = next((data for i, data in encoded if i == frame), b"")
                    _check(one, self)
                    dataset.PixelData = encaps.encapsulate([one])
                stored, _ = decoder.as_array(dataset, index=frame if native else 0, raw=True)
                slope, intercept = self.scale(frame)
                found = _significant(stored, self.dataset) * slope + intercept
            yield found

    def _rescale(self, frame: int) -> list[Any]:
        names = "RescaleSlope", "RescaleIntercept"
        return [_value(self.dataset, frame, "PixelValueTransformationSequence", name) for name in names]


def read(path: Path, max_pixels: int) -> Head:
    """The head of a file whose pixels can be read; none of them is.

    Raises ValueError, the reason in one line without anything that the file says in words: no image, damaged, colour, more than
    `max_pixels` pixels, a depth or a compression that is not read.
    """
    with _sound():
        if path.stat().st_size > files.MOST:
            raise images.Refused(f"{path.stat().st_size:,} bytes, at most {files.MOST:,} are read")
        meta = read_file_meta_info(str(path))
        syntax, kind = (uid.UID(str(meta.get(name, ""))) for name in ("TransferSyntaxUID", "MediaStorageSOPClassUID"))
        if syntax not in _SYNTAXES:  # a deflated one would be unpacked at once, however large
            raise images.Refused(f"{syntax.name if syntax in uid.AllTransferSyntaxes else 'an unknown compression'}: convert it")
        dataset, there, cut = _before_pixels(path)
        if cut and ("Image Storage" in kind.name or kind.name == str(kind) or "Rows" in dataset):
            raise images.Refused(f"its pixels do not begin within the first {_MOST_HEADER:,} bytes, no more are read before them")
        if "Rows" not in dataset or "Columns" not in dataset:
            raise images.Refused("damaged: an image without a size" if "Image Storage" in kind.name else images.NO_IMAGE)
        if not there:
            raise images.Refused(_NO_PIXELS)
        shape, frames = (int(dataset.Rows), int(dataset.Columns)), int(_first(dataset.get("NumberOfFrames", 1)))
        _refuse(dataset, shape, frames, max_pixels)
        _trim(dataset, frames)
        decoders = set(get_decoder(syntax).available_plugins) if syntax not in _NATIVE else {"numpy"}
        if syntax == uid.JPEGExtended12Bit and dataset.BitsStored > 8:
            decoders -= {"pillow"}
        if not decoders:
            raise images.Refused(f"{syntax.name}: pip install pylibjpeg pylibjpeg-libjpeg reads it, or convert it")
        patient, series = (str(dataset.get(name) or "").strip() for name in ("PatientID", "SeriesInstanceUID"))
        number = int(_first(dataset.get("InstanceNumber")) or 0)
        dataset = pydicom.Dataset(dataset)  # which does not hold on to all bytes that were read
        return Head(path, dataset, syntax, shape, frames, patient, series, number)


def _before_pixels(path: Path) -> tuple[pydicom.Dataset, bool, bool]:
    """The tags above of a file; whether its pixels begin behind them, or else whether it has more bytes than are read before them.

    Of a file without pixels nothing may be taken as not said: pydicom takes a value that is cut off for a shorter one.
    """
    with path.open("rb") as file:
        begin = file.read(_MOST_HEADER)
        more = bool(file.read(1))
    _refuse_items(begin)
    buffer = _Counted(begin)
    try:
        with _sound():
            dataset = pydicom.dcmread(buffer, stop_before_pixels=True, specific_tags=_TAGS)
    except images.Refused:
        if not more:
            raise
        return pydicom.Dataset(), False, True
    at = buffer.tell()
    there = begin[at : at + 2] in _PIXELS
    return dataset, there, more and not there


class _Counted(io.BytesIO):
    """Bytes that are read a limited number of times: pydicom makes an object of each element and each item, however small."""

    left = _MOST_READ

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise images.Refused(f"more than {_MOST_READ:,} elements, a file made to waste memory")
        return super().read(size)


def _trim(dataset: pydicom.Dataset, frames: int) -> None:
    """Leaves of functional groups those above, as heads of all files are kept at once. Refuses them where a frame has none."""
    for name in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        found = dataset.get_item(name) if name in dataset else None
        if isinstance(found, RawDataElement):
            value = found.value or b""
            items = read_sequence(_Counted(value), found.is_implicit_VR, found.is_little_endian, len(value), "iso8859")
            setattr(dataset, name, items)
    own, shared = (dataset.get(f"{of}FunctionalGroupsSequence") or [] for of in ("PerFrame", "Shared"))
    if own and len(own) != frames:
        raise images.Refused(f"functional groups of {len(own)} frames, its pixels have {frames}")
    size = 0
    for item in (*own, *shared):
        for tag in item.keys() - _GROUPS:
            del item[tag]
        kept = (item.get_item(tag) for tag in item.keys())
        size += sum(len(group.value or b"") for group in kept if isinstance(group, RawDataElement))
    if size > _MOST_GROUPS:
        raise images.Refused(f"functional groups of {size:,} bytes, a file made to waste memory")


def _refuse(dataset: pydicom.Dataset, shape: tuple[int, int], frames: int, max_pixels: int) -> None:
    height, width = shape
    kind = str(dataset.get("PhotometricInterpretation"))
    allocated, stored, high = (dataset.get(name) for name in ("BitsAllocated", "BitsStored", "HighBit"))
    if min(height, width, frames) < 1 or frames > images.MAX_FRAMES:
        raise images.Refused(f"{frames} frames of {width}x{height} pixels")
    if height * width > max_pixels:
        raise images.Refused(f"{width}x{height} is more than {max_pixels} pixels (--max_pixels)")
    if kind not in ("MONOCHROME1", "MONOCHROME2") or dataset.get("SamplesPerPixel", 1) != 1:
        known = kind if kind in ("RGB", "PALETTE COLOR") or kind.startswith("YBR_") and kind.isupper() else "of another kind"
        raise images.Refused(f"its pixels are {known[:20]}, grey ones are read: convert it")
    if allocated not in (8, 16) or not isinstance(stored, int) or not 1 < stored <= allocated or high not in (None, stored - 1):
        raise images.Refused("its pixels are no integers of 8 to 16 bits")
    if height * width * frames * (allocated // 8) > files.MOST:
        raise images.Refused(f"{frames} frames of {width}x{height} pixels are more than {files.MOST:,} bytes")
    if dataset.get("BurnedInAnnotation") == "YES":
        raise images.Refused("BurnedInAnnotation is YES: a name may be written into the image")
    if "ModalityLUTSequence" in dataset:
        raise images.Refused("a table in place of slope and intercept (ModalityLUTSequence): convert it")


def _refuse_items(data: bytes) -> None:
    if max(data.count(item) for item in _ITEMS) > _MOST_ITEMS:
        raise images.Refused(f"more than {_MOST_ITEMS:,} items, a file made to waste memory")


def _check(frame: bytes, head: Head) -> None:
    """Refuses a compressed frame that would unpack to another size than the file says."""
    if head.syntax in _JPEG:
        size = images.jpeg_size(frame)
    elif head.syntax in _JPEG_2000:
        at = frame.find(b"\xff\x4f\xff\x51")  # the codestream begins with SOC and SIZ, in a file of boxes too
        x, y, left, top = (int.from_bytes(frame[at + k : at + k + 4], "big") for k in (8, 12, 16, 20))
        size = (x - left, y - top)
    else:
        offsets = [int.from_bytes(frame[k : k + 4], "little") for k in range(4, 4 + 4 * min(frame[0], 15), 4)]
        for start, end in zip(offsets, [*offsets[1:], len(frame)], strict=True):
            _refuse_runs(frame[start:end], head.shape[0] * head.shape[1])
        return
    if size != head.shape[::-1]:
        raise images.Refused(f"a frame of {size[0]}x{size[1]} pixels, the file says {head.shape[1]}x{head.shape[0]}")


def _refuse_runs(segment: bytes, most: int) -> None:
    """Refuses a segment of RLE (DICOM PS3.5 G.3.2) that unpacks to more than `most` bytes and a padding."""
    at = count = 0
    while at < len(segment):
        run = segment[at]
        count += run + 1 if run < 128 else 257 - run if run > 128 else 0
        at += run + 2 if run < 128 else 2 if run > 128 else 1
        if count > most + 128:
            raise images.Refused("a frame that unpacks to more pixels than the file says")


def _significant(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Stored values without what may lie in the bits above them, such as an overlay: float64."""
    kind = f"{'i' if dataset.get('PixelRepresentation') else 'u'}{dataset.BitsAllocated // 8}"
    shift = dataset.BitsAllocated - dataset.BitsStored
    return (((stored.astype(kind) << shift).astype(kind)) >> shift).astype(np.float64)


def _value(dataset: pydicom.Dataset, frame: int, group: str, name: str) -> Any:
    """A value of a frame: its own, that of all frames, or else that of the file; None where there is none."""
    own, shared = dataset.get("PerFrameFunctionalGroupsSequence") or [], dataset.get("SharedFunctionalGroupsSequence") or []
    for of in (*own[frame : frame + 1], *shared[:1], dataset):
        inner = of if of is dataset else (of.get(group) or [None])[0]
        if inner is not None and (found := inner.get(name)) not in (None, ""):
            return found
    return None


def _first(value: Any) -> Any:
    """The first of several values."""
    return value[0] if isinstance(value, Sequence) and not isinstance(value, str) and len(value) else value
