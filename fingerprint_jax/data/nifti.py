"""NIfTI volumes of strangers -> values of their axial slices, by nibabel's headers and orientations."""

import dataclasses
import functools
import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path

import nibabel
import numpy as np
from nibabel import orientations
from nibabel.spatialimages import HeaderDataError

from fingerprint_jax.data import images
from fingerprint_jax.runtime import files

_HEADERS = {348: (nibabel.Nifti1Header, b"n+1"), 540: (nibabel.Nifti2Header, b"n+2")}  # by their size, and the magic of one file
_MOST_REST = 2**20  # bytes behind the voxels
_sound = functools.partial(images.sound, HeaderDataError, zlib.error)  # what nibabel and gzip raise beside what others do


@dataclasses.dataclass(frozen=True)
class Head:
    """What a file says before its voxels."""

    path: Path
    offset: int  # bytes before the voxels
    dtype: np.dtype
    stored: tuple[int, int, int]  # as they lie
    axes: np.ndarray  # [3,2] of nibabel: to right, anterior, superior
    frames: int  # axial slices
    slope: float
    intercept: float

    patient = series = ""  # a NIfTI names none
    number, inverted = 0, False
    hounsfield = True  # which a NIfTI does not say: whoever names a window for them does

    def depth(self, frame: int) -> float:
        """Where a slice lies, from the feet up, in slices."""
        return frame

    def as_it_is(self, frame: int) -> bool:
        """Whether the stored values are grey levels: 8 bits, not signed, not scaled."""
        return self.dtype == np.uint8 and (self.slope, self.intercept) == (1, 0)

    def window(self, frame: int) -> tuple[float, float]:
        """There is none: raises ValueError."""
        raise ValueError("no window in it: give --window=centre,width")

    def values(self, frames: Sequence[int]) -> Iterator[np.ndarray]:
        """Axial slices by slope and intercept, drawn as DICOM has them: float64 [H,W], rows to the back, columns to the left.

        Raises ValueError as `read`.
        """
        with _sound(), _opened(self.path) as file:
            file.seek(self.offset)
            size = math.prod(self.stored) * self.dtype.itemsize
            data = file.read(size)  # no more at once, whatever a compressed file holds
            if len(data) < size:
                raise images.Refused(f"{len(data):,} bytes of voxels, its header says {size:,}")
            _refuse_rest(file)
            lying = np.frombuffer(data, self.dtype).reshape(self.stored, order="F")
            volume = orientations.apply_orientation(lying, self.axes)[::-1, ::-1]
        for frame in frames:
            found = volume[:, :, frame].T * np.float64(self.slope) + self.intercept
            yield found


def read(path: Path, max_pixels: int) -> Head:
    """The head of a volume whose voxels can be read; none of them is.

    Raises ValueError, the reason in one line without anything that the file says in words: damaged, several volumes, colour, more
    than `max_pixels` pixels in a slice, a slope that is no number.
    """
    with _sound(), _opened(path) as file:
        if path.stat().st_size > files.MOST:
            raise images.Refused(f"{path.stat().st_size:,} bytes, at most {files.MOST:,} are read")
        begin = file.read(max(_HEADERS))
        sizes = {int.from_bytes(begin[:4], order) for order in ("little", "big")} & _HEADERS.keys()
        if not sizes or len(begin) < (size := sizes.pop()):
            raise images.Refused("no header of NIfTI in it")
        kind, magic = _HEADERS[size]
        header = kind(begin[:size], check=False)
        if not bytes(header["magic"]).startswith(magic):
            raise images.Refused("no NIfTI of one file (.hdr with .img and Analyze are not read)")
        shape = tuple(map(int, header.get_data_shape()))
        if not 2 <= len(shape) <= 7 or min(shape) < 1 or math.prod(shape[3:]) > 1:
            raise images.Refused(f"{'x'.join(map(str, shape))} voxels, one volume is expected")
        stored = (shape[0], shape[1], (*shape, 1)[2])
        dtype, offset = header.get_data_dtype(), float(header["vox_offset"])
        if dtype.kind not in "iuf" or dtype.itemsize > 8:
            raise images.Refused("its voxels are no plain numbers")
        if not size <= offset <= files.MOST or math.prod(stored) * dtype.itemsize + offset > files.MOST:
            raise images.Refused(f"{'x'.join(map(str, stored))} voxels at byte {offset:g} are more than {files.MOST:,} bytes")
        slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
        if not (math.isfinite(slope) and math.isfinite(intercept)):
            raise images.Refused(f"scl_slope {slope:g} and scl_inter {intercept:g}")
        affine = header.get_best_affine()
        axes = orientations.io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)
        if not np.isfinite(axes).all():
            raise images.Refused("it does not say which way its axes point")
        width, height, count = (stored[int(np.flatnonzero(axes[:, 0] == axis)[0])] for axis in range(3))
        if count > images.MAX_FRAMES:
            raise images.Refused(f"{count} slices, at most {images.MAX_FRAMES} are read")
        if width * height > max_pixels:
            raise images.Refused(f"slices of {width}x{height} are more than {max_pixels} pixels (--max_pixels)")
        slope, intercept = (slope, intercept) if slope else (1.0, 0.0)  # 0: not scaled
        return Head(path, int(offset), dtype, stored, axes, count, slope, intercept)


def _refuse_rest(file: gzip.GzipFile | BufferedReader) -> None:
    """Reads on to the end, where gzip compares length and checksum of all that it has unpacked; refuses a long rest."""
    rest = 0
    while more := file.read(2**16):
        rest += len(more)
        if rest > _MOST_REST:
            raise images.Refused(f"more than {_MOST_REST:,} bytes behind its voxels")


def _opened(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")
