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


def test_of_a_gzip_no_more_is_unpacked_than_its_header_says(tmp_path, monkeypatch):
    (tmp_path / "1.nii.gz").write_bytes(gzip.compress(written(VOXELS) + bytes(2**26), 1))
    asked, read = [], gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: asked.append(size) or read(self, size))
    assert slices(tmp_path / "1.nii.gz").shape == (3, 4, 5) and asked == [540, 120]
