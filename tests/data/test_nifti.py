"""What is read of NIfTI files, beside nibabel itself, and what is refused."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from fingerprint_jax.data import images, nifti
from tests.data.dicom_files import nifti as written

FILES = Path(nibabel.__file__).parent / "tests" / "data"
VOXELS = np.random.default_rng(0).integers(-1000, 1000, (5, 4, 3)).astype(np.int16)


def slices(path):
    head = nifti.read(path, images.MAX_PIXELS)
    return np.stack(list(head.values(range(head.frames))))


@pytest.mark.parametrize("name", ["anatomical.nii", "reoriented_anat_moved.nii", "standard.nii.gz"])
def test_real_files_are_read_as_nibabel_reads_them(name):
    expected = nibabel.as_closest_canonical(nibabel.load(FILES / name)).get_fdata()  # right, anterior, superior
    np.testing.assert_array_equal(slices(FILES / name), expected[::-1, ::-1].transpose(2, 1, 0))


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_slices_lie_as_in_dicom_however_the_voxels_do(flips, tmp_path):
    affine = np.diag([2 * flips[0], 2 * flips[1], 5 * flips[2], 1])
    (tmp_path / "1.nii").write_bytes(written(VOXELS, affine))
    right_anterior_superior = VOXELS[:: flips[0], :: flips[1], :: flips[2]]
    for z, found in enumerate(slices(tmp_path / "1.nii")):
        for row in range(4):
            for column in range(5):  # the first row is the front, the first column the right side of the patient
                assert found[row, column] == right_anterior_superior[4 - column, 3 - row, z]


def test_values_are_scaled_and_a_slope_of_0_scales_nothing(tmp_path):
    (tmp_path / "1.nii").write_bytes(written(VOXELS, scl_slope=0.5, scl_inter=3))
    (tmp_path / "2.nii").write_bytes(written(VOXELS, scl_slope=0, scl_inter=3))
    np.testing.assert_array_equal(slices(tmp_path / "1.nii"), slices(tmp_path / "2.nii") * 0.5 + 3)


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "no header of NIfTI"),
        (bytes(10_000), "no header of NIfTI"),
        (written(VOXELS)[:200], "no header of NIfTI"),
        (written(VOXELS)[:-1], "119 bytes of voxels, its header says 120"),
        (written(VOXELS, magic=b"ni1"), "no NIfTI of one file"),
        (written(VOXELS, scl_slope=np.nan), "scl_slope nan"),
        (written(VOXELS, scl_slope=np.inf), "scl_slope inf"),
        (written(VOXELS, scl_inter=-np.inf), "scl_inter -inf"),
        (written(VOXELS.astype(np.complex64)), "no plain numbers"),
        (written(np.stack([VOXELS, VOXELS], axis=3)), "5x4x3x2 voxels, one volume is expected"),
        (written(VOXELS, dim=[3, 0, 4, 3, 1, 1, 1, 1]), "0x4x3 voxels"),
        (written(VOXELS, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "32767x32767x32767 voxels at byte 352 are more than"),
        (written(VOXELS, dim=[3, 16000, 16000, 1, 1, 1, 1, 1]), "slices of 16000x16000 are more than 16777216 pixels"),
        (written(VOXELS, dim=[3, 1000, 1000, 500, 1, 1, 1, 1]), "120 bytes of voxels, its header says 1,000,000,000"),
        (written(VOXELS, vox_offset=-1), "at byte -1"),
        (written(VOXELS, vox_offset=np.nan), "at byte nan"),
        (written(VOXELS, srow_x=[np.nan] * 4), "which way its axes point"),
        (written(VOXELS, srow_x=[0] * 4), "which way its axes point"),
    ],
)
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_what_cannot_be_read_is_one_line(suffix, data, reason, tmp_path):
    path = tmp_path / f"1.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == "nii.gz" else data)
    with pytest.raises(ValueError, match=reason) as error:
        slices(path)
    assert "\n" not in str(error.value)


GZIP = gzip.compress(written(VOXELS), mtime=0)


@pytest.mark.parametrize("data", [b"no gzip", GZIP[:60], GZIP[:-20]], ids=["no gzip", "its beginning", "without its end"])
def test_damaged_gzip_is_one_line(data, tmp_path):
    (tmp_path / "1.nii.gz").write_bytes(data)
    with pytest.raises(ValueError, match="damaged or cut short"):
        slices(tmp_path / "1.nii.gz")


def test_a_bit_of_a_gzip_that_has_changed_changes_no_voxel(tmp_path):
    path, expected, refused = tmp_path / "1.nii.gz", VOXELS[::-1, ::-1].transpose(2, 1, 0), 0
    for at in range(10, len(GZIP)):  # behind the head of gzip, of which neither time nor system is in the checksum
        data = bytearray(GZIP)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        try:
            np.testing.assert_array_equal(slices(path), expected)
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 0.9 * (len(GZIP) - 10)  # the padding of the last byte says nothing


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_behind_the_voxels_a_mebibyte_is_read_on_and_no_more(suffix, tmp_path, monkeypatch):
    path, asked, read = tmp_path / f"1.{suffix}", [], gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: asked.append(size) or read(self, size))
    for more in (2**20, 2**20 + 1, 2**24):
        data = written(VOXELS) + bytes(more)
        path.write_bytes(gzip.compress(data, 1) if suffix == "nii.gz" else data)
        asked.clear()
        if more == 2**20:
            assert slices(path).shape == (3, 4, 5)
        else:
            with pytest.raises(ValueError, match="^more than 1,048,576 bytes behind its voxels$"):
                slices(path)
        assert sum(asked) < 2**20 + 2**18
