"""What is read of DICOM files, beside pydicom itself, and what is refused."""

import importlib.util
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from fingerprint_jax.data import dicom, images
from tests.data.dicom_files import dataset, save
from tests.data.test_images import encode

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
MORE = [name for name in ("libjpeg", "gdcm") if importlib.util.find_spec(name)]
WITHOUT_MORE = pytest.mark.skipif(bool(MORE), reason=f"{MORE} decodes it")
STORED = np.random.default_rng(0).integers(0, 4096, (8, 6)).astype(np.uint16)


def frames(path, max_pixels=images.MAX_PIXELS):
    head = dicom.read(path, max_pixels)
    return list(head.values(range(head.frames)))


def real(name):
    return FILES / f"{name}.dcm"


@pytest.mark.parametrize("name", ["CT_small", "MR_small_padded", "693_J2KI", "J2K_pixelrep_mismatch", "examples_overlay"])
def test_real_files_are_read_as_pydicom_reads_them(name):
    found = pydicom.dcmread(real(name))
    (values,) = frames(real(name))
    np.testing.assert_array_equal(values, apply_modality_lut(found.pixel_array, found))


@pytest.mark.parametrize(
    "name", ["MR_small_RLE", "MR_small_jp2klossless", "MR_small_bigendian", "MR_small_implicit", "MR_small_expb"]
)
def test_an_image_is_the_same_in_each_transfer_syntax(name):
    np.testing.assert_array_equal(frames(real(name))[0], pydicom.dcmread(real("MR_small")).pixel_array)


def test_bits_above_those_that_count_are_no_values(tmp_path):
    signed = STORED.astype(np.int16) - 2048
    for stored, representation in ((STORED, 0), (signed, 1)):
        lying = (stored & 0x0FFF | 0x5000).astype(np.uint16)
        tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": representation}
        (values,) = frames(save(tmp_path / "1.dcm", dataset(lying, **tags)))
        np.testing.assert_array_equal(values, stored - 1024.0)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", None])
def test_the_window_of_a_file_is_that_of_the_standard(function, tmp_path):
    tags = {"WindowCenter": [300.5, 1], "WindowWidth": [1100, 2]} | ({"VOILUTFunction": function} if function else {})
    found = dataset(STORED, **tags)
    low, high = dicom.read(save(tmp_path / "1.dcm", found), 100).window(0)
    expected = apply_windowing(apply_modality_lut(STORED, found), found)
    black, white = -1024, 65535 - 1024  # the values that 16 bits can have, in which pydicom answers
    got = np.clip((STORED - 1024.0 - low) / (high - low), 0, 1)
    np.testing.assert_allclose(got, (expected - black) / (white - black), atol=1e-9)


def group(**tags):
    """A sequence of one item."""
    item = pydicom.Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return [item]


def test_slope_window_and_place_of_enhanced_files_are_those_of_the_frame(tmp_path):
    found = dataset(np.stack([STORED, STORED]), RescaleSlope=None, RescaleIntercept=None)
    found.SharedFunctionalGroupsSequence = group(
        PixelValueTransformationSequence=group(RescaleSlope=2, RescaleIntercept=-5),
        PlaneOrientationSequence=group(ImageOrientationPatient=[0, 1, 0, 0, 0, 1]),  # sagittal
    )
    windows = ({"FrameVOILUTSequence": group(WindowCenter=c, WindowWidth=101)} for c in (50.5, 70.5))
    places = ({"PlanePositionSequence": group(ImagePositionPatient=[x, 9, 9])} for x in (7, 4))
    own = [group(**window, **place)[0] for window, place in zip(windows, places, strict=True)]
    own[1].PixelValueTransformationSequence = group(RescaleSlope=3, RescaleIntercept=0)
    found.PerFrameFunctionalGroupsSequence = own
    head = dicom.read(save(tmp_path / "1.dcm", found), 100)
    first, second = head.values([0, 1])
    np.testing.assert_array_equal(first, STORED * 2.0 - 5)
    np.testing.assert_array_equal(second, STORED * 3.0)
    assert head.window(0) == (0, 100) and head.window(1) == (20, 120) and head.hounsfield
    assert [head.depth(0), head.depth(1)] == [7, 4]


def compressed(syntax, frame, **tags):
    found = dataset(np.zeros((8, 6), np.uint8), **tags)
    found.file_meta.TransferSyntaxUID = syntax
    found.PixelData = encapsulate([frame])
    found["PixelData"].is_undefined_length = True
    return found


def test_jpeg_is_read_as_pillow_reads_it(tmp_path):
    frame = encode(np.arange(48, dtype=np.uint8).reshape(8, 6), "JPEG", quality=95)
    (values,) = frames(save(tmp_path / "1.dcm", compressed(JPEGBaseline8Bit, frame, RescaleIntercept=0)))
    assert abs(values - np.arange(48).reshape(8, 6)).max() <= 3


def nested(depth):
    """Sequences within sequences, none of which ends."""
    found = dataset(STORED)
    del found.PixelData
    return found, (b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * depth


def rle(*segments):
    header = [len(segments)] + [64 + sum(map(len, segments[:i])) for i in range(len(segments))]
    return np.array(header + [0] * (16 - len(header)), "<u4").tobytes() + b"".join(segments)


WHOLE = bytes([128 + 1 + 128 - 48, 7])  # a run of 48 bytes


@pytest.mark.parametrize(
    "found, reason",
    [
        (dataset(STORED, Rows=65535, Columns=65535), "65535x65535 is more than 16777216 pixels"),
        (dataset(STORED, NumberOfFrames=0), "0 frames of 6x8 pixels"),
        (dataset(STORED, NumberOfFrames=2_000_000_000), "2000000000 frames of 6x8 pixels"),
        (dataset(STORED, Rows=4000, Columns=4000, NumberOfFrames=99_999), "are more than 1,073,741,824 bytes"),
        (dataset(STORED, NumberOfFrames=2), r"damaged or cut short \(ValueError\)"),
        (dataset(STORED, Rows=0), "1 frames of 6x0 pixels"),
        (dataset(STORED, Rows=None), "damaged: an image without a size"),
        (dataset(STORED, PixelData=None), "no pixels in it"),
        (dataset(STORED, PhotometricInterpretation="PALETTE COLOR"), "its pixels are PALETTE COLOR, grey ones are read"),
        (dataset(STORED, PhotometricInterpretation="ZWETSCHGEN"), "its pixels are of another kind"),
        (dataset(STORED, BitsAllocated=32, BitsStored=32, HighBit=31), "no integers of 8 to 16 bits"),
        (dataset(STORED, BitsStored=0), "no integers of 8 to 16 bits"),
        (dataset(STORED, BitsStored=12, HighBit=15), "no integers of 8 to 16 bits"),
        (dataset(STORED, BurnedInAnnotation="YES"), "a name may be written into the image"),
        (dataset(STORED, ModalityLUTSequence=[pydicom.Dataset()]), "a table in place of slope and intercept"),
        (dataset(STORED, RescaleSlope=0), "rescale slope 0"),
        (compressed(JPEGBaseline8Bit, encode(np.zeros((80, 60), np.uint8), "JPEG")), "a frame of 60x80 pixels, the file says 6x8"),
        (compressed(JPEGBaseline8Bit, b"\xff\xd8"), "no JPEG inside"),
        (
            compressed(JPEG2000Lossless, encode(np.zeros((80, 60), np.uint8), "JPEG2000", no_jp2=True)),
            "a frame of 60x80 pixels, the file says 6x8",
        ),
        (compressed(RLELossless, rle(bytes([129, 7]) * 1000)), "unpacks to more pixels than the file says"),
        (compressed(RLELossless, rle(WHOLE, WHOLE)), r"damaged or cut short \(RuntimeError\)"),
        (compressed(RLELossless, b"\xff" * 70), "damaged or cut short"),
        (compressed("1.2.840.10008.1.2.4.80", b"x"), "JPEG-LS Lossless Image Compression: convert it"),
        pytest.param(compressed("1.2.840.10008.1.2.4.70", b"x"), "pip install pylibjpeg pylibjpeg-libjpeg", marks=WITHOUT_MORE),
    ],
)
def test_what_cannot_be_read_is_one_line(found, reason, tmp_path):
    with pytest.raises(ValueError, match=reason) as error:
        frames(save(tmp_path / "1.dcm", found))
    assert "\n" not in str(error.value)


def test_the_frame_of_a_bomb_is_read_where_it_is_none(tmp_path):
    (values,) = frames(save(tmp_path / "1.dcm", compressed(RLELossless, rle(WHOLE), RescaleIntercept=0)))
    np.testing.assert_array_equal(values, np.full((8, 6), 7))


@pytest.mark.parametrize(
    "name, reason",
    [
        ("test-SR", images.NO_IMAGE),
        ("rtplan", images.NO_IMAGE),
        ("image_dfl", "Deflated"),
        ("rtdose", "no integers"),
        ("liver_1frame", "no integers"),
        pytest.param("JPGExtended", "pip install pylibjpeg pylibjpeg-libjpeg reads it", marks=WITHOUT_MORE),
    ],
)
def test_real_files_that_are_refused(name, reason):
    with pytest.raises(ValueError, match=reason):
        frames(real(name))


@pytest.mark.parametrize("name", ["MR_truncated", "no_meta", "meta_missing_tsyntax"])
def test_real_files_that_are_damaged(name):
    with pytest.raises(ValueError) as error:
        frames(real(name))
    assert "\n" not in str(error.value)


def test_sequences_without_end_and_many_items_are_refused(tmp_path):
    for count in (5_000, 100_001):
        found, begin = nested(count)
        path = save(tmp_path / "1.dcm", found)
        whole = path.read_bytes()
        at = whole.index(b"\x08\x00\x60\x00CS")  # Modality, behind which the sequence stands
        path.write_bytes(whole[:at] + begin)
        reason = "damaged or cut short .RecursionError." if count == 5_000 else "more than 100,000 items"
        with pytest.raises(ValueError, match=reason):
            frames(path)


def test_an_unknown_compression_is_refused(tmp_path):
    path = save(tmp_path / "1.dcm", dataset(STORED))
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0", 1))
    with pytest.raises(ValueError, match="an unknown compression: convert it"):
        frames(path)


def test_a_file_cut_anywhere_is_one_line(tmp_path):
    whole = save(tmp_path / "1.dcm", dataset(STORED)).read_bytes()
    for end in range(0, len(whole) - 1, 37):
        (tmp_path / "2.dcm").write_bytes(whole[:end])
        with pytest.raises(ValueError) as error:
            frames(tmp_path / "2.dcm")
        assert "\n" not in str(error.value) and "Zwetschgen" not in str(error.value)


@pytest.mark.parametrize("name", ["MR_small", "MR_small_RLE", "MR_small_jp2klossless", "MR_small_implicit", "nested_priv_SQ"])
def test_damaged_bytes_are_values_or_one_line(name, tmp_path):
    rng, whole, path = np.random.default_rng(0), real(name).read_bytes(), tmp_path / "1.dcm"
    for _ in range(40):
        data = bytearray(whole)
        for at in rng.integers(132, min(len(data), 2500), rng.integers(1, 8)):
            data[at : at + rng.integers(0, 3)] = rng.bytes(rng.integers(0, 5))
        path.write_bytes(data)
        try:
            head = dicom.read(path, images.MAX_PIXELS)
            assert isinstance(head.hounsfield, bool) and isinstance(head.inverted, bool)
            assert head.depth(0) is None or np.isfinite(head.depth(0))
            assert all(np.isfinite(values).all() for values in head.values([0]))
        except ValueError as error:
            assert "\n" not in str(error)
