"""What is read of DICOM files, beside pydicom itself, and what is refused."""

import importlib.util
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import EncapsulatedPDFStorage, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

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


LONG = b"\1" * 5_000_000  # bytes of a scanner; of two the second ends behind the first 8 MiB


def enhanced(private, ends=True):
    """Two frames with slope 3, intercepts 1 and 2 and a place each; sequences have a length, or an end alone."""
    found = dataset(np.stack([STORED, STORED]), RescaleSlope=None, RescaleIntercept=None)
    shared = group(PlaneOrientationSequence=group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]))
    own = []
    for k in (1, 2):
        own += group(PlanePositionSequence=group(ImagePositionPatient=[0, 0, 5 * k]))
        own[-1].PixelValueTransformationSequence = group(RescaleSlope=3, RescaleIntercept=k)
        own[-1].add_new(0x20051010, "LO", "PRIVATE")
        own[-1].add_new(0x20051020, "OB", private)
    found.SharedFunctionalGroupsSequence, found.PerFrameFunctionalGroupsSequence = shared, own
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        found[name].is_undefined_length = ends
    return found


def before(path, at, length):
    """Puts a value of a scanner, so many zeros, before an element: they are a hole in the file."""
    whole = path.read_bytes()
    place = whole.rindex(at)
    with path.open("wb") as file:
        file.write(whole[:place] + b"\x29\0\x20\x10OB\0\0" + length.to_bytes(4, "little"))
        file.seek(length, 1)
        file.write(whole[place:])
    return path


@pytest.mark.parametrize("ends", [False, True])
def test_slope_and_place_of_a_frame_are_read_behind_megabytes_of_the_scanner(ends, tmp_path):
    path = save(tmp_path / "1.dcm", enhanced(LONG, ends))
    tracemalloc.start()
    head = dicom.read(path, 100)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [head.scale(k) for k in (0, 1)] == [(3, 1), (3, 2)] and [head.depth(k) for k in (0, 1)] == [5, 10]
    np.testing.assert_array_equal(list(head.values([0, 1])), [STORED * 3.0 + 1, STORED * 3.0 + 2])
    assert kept < 1_000_000  # heads of all files are kept at once


def test_slope_of_all_frames_is_read_behind_megabytes_of_the_scanner(tmp_path):
    found = dataset(np.stack([STORED, STORED]), RescaleSlope=None, RescaleIntercept=None)
    found.SharedFunctionalGroupsSequence = group(PixelValueTransformationSequence=group(RescaleSlope=2, RescaleIntercept=-5))
    path = before(save(tmp_path / "1.dcm", found), b"\0\x52\x29\x92SQ", 9_000_000)
    np.testing.assert_array_equal(frames(path), [STORED * 2.0 - 5] * 2)


PIXELS = b"\xe0\x7f\x10\0OW"


@pytest.mark.parametrize("at", [b"\x08\0\x60\0CS", b"\x28\0\x52\x10DS", PIXELS], ids=["Modality", "RescaleIntercept", "PixelData"])
def test_pixels_behind_more_than_is_read_are_refused(at, tmp_path):
    path = before(save(tmp_path / "1.dcm", dataset(STORED)), at, 2**25)
    with pytest.raises(ValueError, match="^its pixels do not begin within the first 33,554,432 bytes"):
        dicom.read(path, 100)


def test_a_sequence_that_goes_on_behind_what_is_read_is_refused(tmp_path):
    path = before(save(tmp_path / "1.dcm", enhanced(b"x")), b"\x05\x20\x20\x10OB", 2**25)
    with pytest.raises(ValueError, match="^its pixels do not begin within the first 33,554,432 bytes"):
        dicom.read(path, 100)


@pytest.mark.parametrize("ends", [False, True])
def test_a_sequence_of_nothing_but_small_items_is_refused(ends, tmp_path, monkeypatch):
    monkeypatch.setattr(dicom._Counted, "left", 1_000)
    begin = b"\0\x52\x30\x92SQ\0\0" + (b"\xff" * 4 if ends else (80_000).to_bytes(4, "little"))
    path = save(tmp_path / "1.dcm", dataset(STORED))
    whole = path.read_bytes()
    place = whole.rindex(PIXELS)
    path.write_bytes(whole[:place] + begin + bytes(80_000) + whole[place:])  # pydicom takes eight zeros for an item
    with pytest.raises(ValueError, match="more than 1,000,000 elements|damaged or cut short"):
        dicom.read(path, 100)


def test_a_long_file_of_another_kind_is_no_image(tmp_path):
    found = dataset(STORED, Rows=None, PixelData=None)
    found.SOPClassUID = EncapsulatedPDFStorage
    with pytest.raises(ValueError, match=f"^{images.NO_IMAGE}$"):
        dicom.read(before(save(tmp_path / "1.dcm", found), b"\x28\0\x52\x10DS", 2**25), 100)


@pytest.mark.parametrize("count", [1, 3])
def test_functional_groups_of_other_frames_are_refused(count, tmp_path):
    found = enhanced(b"")
    found.PerFrameFunctionalGroupsSequence = [found.PerFrameFunctionalGroupsSequence[0]] * count
    with pytest.raises(ValueError, match=f"^functional groups of {count} frames, its pixels have 2$"):
        dicom.read(save(tmp_path / "1.dcm", found), 100)


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


@pytest.mark.parametrize("name", ["MR_small_RLE", "MR_small_jp2klossless", "MR_small_implicit"])
def test_of_a_real_file_cut_anywhere_no_value_is_another(name, tmp_path):
    whole, (expected,), refused = real(name).read_bytes(), frames(real(name)), 0
    for end in range(len(whole) - 1, 0, -199):
        (tmp_path / "1.dcm").write_bytes(whole[:end])
        try:
            np.testing.assert_array_equal(frames(tmp_path / "1.dcm"), [expected])
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused >= len(range(len(whole) - 1, 0, -199)) - 1  # but for what stands behind the pixels


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
