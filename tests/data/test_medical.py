"""From folders of DICOM and NIfTI to packed slices: patients, names, windows, order, and nothing else of the files."""

import csv
import gzip
import logging
import os
import stat
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from pydicom import encaps
from pydicom.uid import RLELossless

from fingerprint_jax.data import builder, packing
from fingerprint_jax.data.medical import Options
from fingerprint_jax.data.source import Source
from fingerprint_jax.runs import unchanged
from tests.data.dicom_files import dataset, nifti, save, secrets
from tests.test_pack import run, table
from tests.test_pack import save as save_png

RNG = np.random.default_rng(0)


def stored(*shape):
    return RNG.integers(0, 2500, shape or (16, 16)).astype(np.uint16)


def series(root, patient, count=3, **tags):
    """A folder of a patient's slices, which bear the patient's name; their order is not that of the file names."""
    for k in range(count):
        path = root / f"{secrets(patient)['PatientName']}" / f"IM{count - k}_{secrets(patient)['PatientID']}"
        save(path, dataset(stored(), patient, number=count - k, depth=2.5 * k, **tags))


def packed(root, *, salt="salt", groups="", window="lung", slices="all", task="images", data="data", **options):
    place = {"max_rejected": 1.0, "groups": groups, "of_volumes": Options(root / salt, window, slices)} | options
    packing.pack(task, root / data, root / "i", **place)
    return {row["id"]: row for row in table(root / data, task, "files.csv")}


def reasons(root, task="images", data="data"):
    return [row["reason"] for row in table(root / data, task, "rejected.csv")]


def images_of(root, task="images", split="train", data="data"):
    source = Source(str(root / data), task)
    rows = source.rows(split)
    return dict(zip(rows.ids.tolist(), source.images(rows.index)[..., 0], strict=True))


def names(root, salt="salt"):
    """What a file is called, by its path below the images."""
    with open(root / f"{salt}.csv", newline="", encoding="utf-8") as file:
        return {os.path.relpath(row["path"], root / "i"): row["name"] for row in csv.DictReader(file)}


def found_in(root, text):
    """Files below a folder, and records of the data sets there, that hold a text."""
    files = [path for path in root.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
    files += [path for path in root.rglob("*") if text in path.name]
    for path in root.rglob("dataset_info.json"):
        made = tfds.builder_from_directory(str(path.parent)).as_data_source()
        files += [
            path
            for split in made.values()
            for r in split
            if text.encode() in b"|".join((r["id"], r["group"], r["image"].tobytes()))
        ]
    return files


def test_nothing_that_a_file_says_but_its_pixels_is_in_any_output(tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    for name in ("real_used", "real_not_used"):
        for patient in (1, 2) if name == "real_used" else (3, 4):
            series(tmp_path / "i" / name, patient)
        save(tmp_path / "i" / name / "Zwetschgen9" / "broken.dcm", dataset(stored(), 9, Rows=65535, Columns=65535))
        (tmp_path / "i" / name / "Zwetschgen9" / "notes Zwetschgen.txt").write_text("MRN-77131")
    for k in range(3):
        save_png(tmp_path / "i" / "generated" / f"{k}.png")
    place = {"task": "subtask1", "train_dir": tmp_path / "i", "data_dir": tmp_path / "data", "max_rejected": 0.5}
    run(**place, salt=tmp_path / "salt", window="lung")
    out, err = capfd.readouterr()
    uids = ["1.2.826.0.1.3680043.8.498."]  # with which pydicom begins all that the files have
    planted = [text for patient in (1, 2, 3, 4, 9) for text in secrets(patient).values()] + uids + ["Zwetschgen", "privat1"]
    for text in planted:
        assert found_in(tmp_path / "i", text), text  # it could be found
        assert not found_in(tmp_path / "data", text), text
        assert text not in out + err + caplog.text, text
    assert reasons(tmp_path, "subtask1").count("DICOM: 65535x65535 is more than 16777216 pixels (--max_pixels)") == 2
    salt = (tmp_path / "salt").read_text().strip()
    assert len(salt) == 64 and not found_in(tmp_path / "data", salt) and salt not in out + err


def test_patients_are_groups_and_the_salt_makes_their_names(tmp_path):
    for patient, folder in ((1, "a"), (2, "a"), (3, "b")):
        series(tmp_path / "i" / folder, patient)
    series(tmp_path / "i" / "b", 1, count=1)  # the same patient once more
    rows = packed(tmp_path)
    by_name = {name: row["group"] for row in rows.values() for name in [row["id"].partition("/")[2]]}
    of = {path: by_name[name] for path, name in names(tmp_path).items()}
    groups = {p: {group for path, group in of.items() if secrets(p)["PatientName"] in path} for p in (1, 2, 3)}
    assert all(len(found) == 1 for found in groups.values()) and len(set.union(*groups.values())) == 3
    assert packed(tmp_path, data="again") == rows
    other = packed(tmp_path, data="other", salt="other_salt")
    assert not rows.keys() & other.keys() and not {r["group"] for r in rows.values()} & {r["group"] for r in other.values()}
    summary = Source(str(tmp_path / "data"), "images").summary
    assert summary["splits"]["train"]["groups"] == 3 and summary["splits"]["train"]["without_patient"] == 0


def test_a_table_of_patients_wins_and_names_files_by_their_paths(tmp_path):
    series(tmp_path / "i" / "a", 1, count=2)
    (tmp_path / "i" / "b").mkdir()
    for name in ("x.nii", "y.nii.gz", "z.nii"):
        data = nifti(stored(16, 16, 2).astype(np.int16))
        (tmp_path / "i" / "b" / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    (tmp_path / "g.csv").write_text("id,group\na/Zwetschgen1^Quirin/IM1_MRN-77131,anna\nb/x,berta\nb/y.nii.gz,berta\n")
    rows = packed(tmp_path, groups=tmp_path / "g.csv")
    assert sorted(row["group"] for row in rows.values()) == ["anna"] + ["berta"] * 4
    assert sorted(reasons(tmp_path)) == [
        f"{kind}: no patient in --groups, give --groups=CSV with a line for each such file" for kind in ("DICOM", "NIfTI")
    ]


def test_a_real_volume_without_a_patient_is_refused_and_a_synthetic_one_is_a_group(tmp_path):
    for name in ("generated", "real_used", "real_not_used"):
        save(tmp_path / "i" / name / "1.dcm", dataset(stored(), 1, PatientID=""))
        save(tmp_path / "i" / name / "2.dcm", dataset(stored(2, 16, 16), 1 + len(name)))
        (tmp_path / "i" / name / "3.nii").write_bytes(nifti(stored(16, 16, 3).astype(np.int16)))
    rows = packed(tmp_path, task="subtask1")
    counts = {
        split: [row["group"] for row in rows.values() if row["split"] == split] for split in ("train_generated", "train_real")
    }
    assert sorted(np.unique(counts["train_generated"], return_counts=True)[1]) == [1, 2, 3]
    assert sorted(np.unique(counts["train_real"], return_counts=True)[1]) == [2, 2]
    assert len(reasons(tmp_path, "subtask1")) == 4 and all("no patient in it" in reason for reason in reasons(tmp_path, "subtask1"))


@pytest.mark.parametrize("slices, expected", [("all", [0, 1, 2, 3, 4]), ("middle", [2]), ("every:2", [0, 2, 4]), ("every:9", [0])])
def test_slices_are_counted_along_the_body_not_by_name_or_number(slices, expected, tmp_path):
    depths = [30, 10, -5, 20, 0]  # of the files 0 to 4
    for k, depth in enumerate(depths):
        save(tmp_path / "i" / "a" / f"{k}.dcm", dataset(stored(), 1, number=k, depth=depth))
    save(
        tmp_path / "i" / "a" / "n.dcm",
        dataset(np.stack([np.full((16, 16), 300 * k, np.uint16) + stored() // 99 for k in range(5)]), 2),
    )
    (tmp_path / "i" / "b").mkdir()
    (tmp_path / "i" / "b" / "1.nii").write_bytes(nifti(stored(16, 16, 5).astype(np.int16)))
    (tmp_path / "g.csv").write_text("id,group\n" + "".join(f"a/{k},p\n" for k in [*range(5), "n"]) + "b/1,q\n")
    ids = set(packed(tmp_path, slices=slices, groups=tmp_path / "g.csv"))
    called = names(tmp_path)
    in_order = [f"{k}.dcm" for k in np.argsort(depths)]
    assert ids == (
        {f"a/{called[f'a/{in_order[i]}']}" for i in expected}
        | {f"a/{called['a/n.dcm']}/{i:04d}" for i in expected}
        | {f"b/{called['b/1.nii']}/{i:04d}" for i in expected}
    )


def test_the_window_makes_black_and_white(tmp_path):
    values = np.array([[-3000, -1350, -600, 150, 900, -1349]] * 8, np.int16)
    for name, kind in (("a", "MONOCHROME2"), ("b", "MONOCHROME1")):
        tags = {"RescaleIntercept": 0, "PhotometricInterpretation": kind}
        save(tmp_path / "i" / name / "1.dcm", dataset(values, 1, **tags))
    packed(tmp_path, window="lung")  # -1350 to 150
    (_, dark), (_, bright) = sorted(images_of(tmp_path).items())
    assert dark[0].tolist() == [0, 0, 128, 255, 255, 0] and (bright == 255 - dark).all()
    packed(tmp_path, window="-1349.5,1", data="narrow")
    assert sorted(images_of(tmp_path, data="narrow").items())[0][1][0].tolist() == [0, 0, 255, 255, 255, 255]


def test_each_file_has_its_own_window_where_that_is_asked_for(tmp_path):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8)
    for name, center in (("a", 11), ("b", 21)):
        tags = {"RescaleIntercept": 0, "WindowCenter": center + 0.5, "WindowWidth": 21}
        save(tmp_path / "i" / name / "1.dcm", dataset(values, 1, **tags))
    packed(tmp_path, window="file")
    for (_, pixels), center in zip(sorted(images_of(tmp_path).items()), (11, 21), strict=True):
        assert np.flatnonzero(pixels == 0).max() == center - 10 and np.flatnonzero(pixels == 255).min() == center + 10


def test_without_a_window_8_bits_are_as_they_are_and_more_are_refused(tmp_path):
    grey = stored().astype(np.uint8)
    save(tmp_path / "i" / "a" / "1.dcm", dataset(grey, 1, RescaleIntercept=0))
    save(tmp_path / "i" / "b" / "1.dcm", dataset(grey, 2, RescaleIntercept=0, PhotometricInterpretation="MONOCHROME1"))
    save(tmp_path / "i" / "b" / "2.dcm", dataset(stored(), 2))
    save(tmp_path / "i" / "b" / "3.dcm", dataset(grey, 2))  # of which 1024 are to be taken
    packed(tmp_path, window="")
    (_, plain), (_, inverted) = sorted(images_of(tmp_path).items())
    assert (plain == grey).all() and (inverted == 255 - grey).all()
    assert len(reasons(tmp_path)) == 2 and all("more than 8 bits: give --window=" in reason for reason in reasons(tmp_path))


@pytest.mark.parametrize(
    "tags, window, reason",
    [
        ({"Modality": "MR"}, "lung", "no CT with slope and intercept: --window=lung is of Hounsfield units"),
        ({"RescaleIntercept": None}, "lung", "no CT with slope and intercept"),
        ({}, "file", "no window in it: give --window=centre,width"),
        ({"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "SIGMOID"}, "file", "no linear one"),
        ({"WindowCenter": 40, "WindowWidth": 0}, "file", "has the width 0"),
    ],
)
def test_windows_that_do_not_fit_a_file_are_refused(tags, window, reason, tmp_path):
    save(tmp_path / "i" / "a" / "1.dcm", dataset(stored(), 1, **tags))
    with pytest.raises(ValueError, match=f"^no image in {tmp_path}/i/a; {tmp_path}/i/a/[0-9a-f]{{16}}: DICOM: .*{reason}"):
        packed(tmp_path, window=window)


@pytest.mark.parametrize("window", ["lungs", "1", "1,2,3", "40,0", "40,-1", "nan,1", "40,inf", "a,b", ","])
def test_a_window_that_is_none_is_one_line(window):
    with pytest.raises(ValueError, match=f"^--window={window}: use centre,width such as -600,1500, file, or one of lung"):
        Options("", window)


@pytest.mark.parametrize("slices", ["none", "every", "every:0", "every:-1", "every:2.5", "every:2\n"])
def test_slices_that_are_none_are_one_line(slices):
    with pytest.raises(ValueError, match=r"use all, middle or every:N"):
        Options("", "", slices)


def test_the_window_is_kept_and_another_one_is_refused_where_a_run_is_scored(tmp_path):
    for name in "ab":
        series(tmp_path / "i" / name, 1 + ord(name))
    packed(tmp_path, window="mediastinum", slices="every:2")
    source = Source(str(tmp_path / "data"), "images")
    assert source.window == {"window": "50,350", "slices": "every:2"}
    (tmp_path / "provenance.json").write_text("{}")

    def scored(known):
        config, provenance = SimpleNamespace(data_dir="data"), {} if known is None else {"window": known}
        unchanged.require_window(SimpleNamespace(workdir=tmp_path, source=source, provenance=provenance, config=config))

    scored("50,350")
    scored(None)
    with pytest.raises(ValueError, match="started with images of --window=-600,1500, data has --window=50,350"):
        scored("-600,1500")


def test_without_a_salt_volumes_are_left_out_with_a_reason(tmp_path):
    for k in range(40):
        save_png(tmp_path / "i" / "a" / f"{k}.png")
    save(tmp_path / "i" / "a" / "DICOMDIR", dataset(stored()))  # of a disc that PNG files were exported to
    packing.pack("images", tmp_path / "data", tmp_path / "i")
    (reason,) = reasons(tmp_path)
    assert reason.startswith("DICOM: not read without --salt=FILE, ")
    series(tmp_path / "j" / "a", 1)
    with pytest.raises(ValueError, match="not read without --salt=FILE"):
        packing.pack("images", tmp_path / "d2", tmp_path / "j")


def test_with_a_salt_no_name_but_those_of_png_files_is_shown(tmp_path):
    for k in range(40):
        save_png(tmp_path / "i" / "a" / f"{k}.png")
    (tmp_path / "i" / "a" / "DOE_JOHN_1960.dcm").symlink_to("/etc/passwd")
    packed(tmp_path)
    assert not found_in(tmp_path / "data", "DOE_JOHN") and reasons(tmp_path) == ["a link that leaves the folder"]
    assert "a/DOE_JOHN_1960.dcm" in names(tmp_path)  # who has the salt can look it up
    assert Source(str(tmp_path / "data"), "images").window == {}


@pytest.mark.parametrize("module", ["pydicom", "nibabel"])
def test_without_the_packages_one_line_says_which_extra(module, tmp_path, monkeypatch):
    series(tmp_path / "i" / "a", 1)
    for name in ("dicom", "nifti"):
        monkeypatch.delitem(sys.modules, f"fingerprint_jax.data.{name}", raising=False)
        monkeypatch.delattr(f"fingerprint_jax.data.{name}", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"^DICOM and NIfTI .*: pip install 'fingerprint_jax\[medical\]'$"):
        packed(tmp_path)


def test_the_salt_is_the_owner_s_alone_and_stays_out_of_the_output(tmp_path):
    series(tmp_path / "i" / "a", 1)
    packed(tmp_path)
    for name in ("salt", "salt.csv"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    before = (tmp_path / "salt").read_text()
    packed(tmp_path, overwrite=True)
    assert (tmp_path / "salt").read_text() == before
    with pytest.raises(ValueError, match="which is handed on"):
        packed(tmp_path, salt="data/salt", overwrite=True)
    (tmp_path / "open").write_text(before)
    (tmp_path / "open").chmod(0o644)
    with pytest.raises(ValueError, match="open to others: chmod 600"):
        packed(tmp_path, salt="open", data="d2")
    with pytest.raises(ValueError, match="a folder: name a file"):
        packed(tmp_path, salt="data", data="d2")
    (tmp_path / "letter").write_text("Dear Sir")
    (tmp_path / "letter").chmod(0o600)
    with pytest.raises(ValueError, match="no salt of ours"):
        packed(tmp_path, salt="letter", data="d2")
    (tmp_path / "salt.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="no table of names of ours"):
        packed(tmp_path, data="d2")


def test_a_name_that_two_packs_have_given_is_found_for_both(tmp_path):
    roots = tmp_path / "one", tmp_path / "two"
    for root in roots:
        series(root / "i" / "a", 1)
        packed(root, salt="../salt")
    lines = (tmp_path / "salt.csv").read_text().splitlines()[1:]
    paths = sorted(str(path) for root in roots for path in (root / "i").rglob("*") if path.is_file())
    assert sorted(line.partition(",")[2] for line in lines) == paths
    assert len({line.partition(",")[0] for line in lines}) == len(paths) / 2
    packed(roots[1], salt="../salt", overwrite=True)
    assert (tmp_path / "salt.csv").read_text().splitlines()[1:] == lines


def test_the_salt_may_lie_beside_the_images(tmp_path):
    series(tmp_path / "i" / "a", 1)
    packed(tmp_path, salt="i/a/salt")
    assert reasons(tmp_path) == []
    packed(tmp_path, salt="i/a/salt", overwrite=True)
    assert reasons(tmp_path) == []


def test_hostile_and_foreign_files_are_rejected_a_line_each_and_the_rest_is_packed(tmp_path):
    series(tmp_path / "i" / "a", 1)
    place = tmp_path / "i" / "a"
    (place / "1.dcm").write_bytes(b"no DICOM")
    (place / "2.dcm").write_bytes(bytes(128) + b"DICM")
    (place / "3.nii.gz").write_bytes(b"no gzip")
    report = dataset(stored(), 1, Rows=None, Columns=None, PixelData=None)
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"  # Basic Text SR
    save(place / "report", report)
    os.mkfifo(place / "4.dcm")
    (place / "5.dcm").symlink_to("/etc/passwd")
    rows = packed(tmp_path)
    assert len(rows) == 3
    assert sorted(reasons(tmp_path)) == [
        "DICOM: an unknown compression: convert it",
        "DICOM: damaged or cut short (InvalidDicomError)",
        "NIfTI: damaged or cut short (BadGzipFile)",
        "a DICOM without an image",
        "a link that leaves the folder",
        "not a regular file",
    ]


def test_volumes_that_are_lost_count_as_files_not_as_slices(tmp_path):
    for k in range(10):
        save(
            tmp_path / "i" / "a" / f"{k}.dcm",
            dataset(stored(30, 16, 16), k, **({"Rows": 65535, "Columns": 65535} if k < 2 else {})),
        )
    with pytest.raises(ValueError, match=f"^rejected: 2 of 10 images in {tmp_path}/i/a: more than 0.1 of a folder"):
        packed(tmp_path, max_rejected=0.1)
    assert not builder.dataset_dir(tmp_path / "data", "images").exists()


def test_volumes_of_another_size_count_as_lost_each_once(tmp_path):
    for k in range(19):
        side = 16 if k < 10 else 24
        save(tmp_path / "i" / "a" / f"{k}.dcm", dataset(stored(3, side, side), k))
    with pytest.raises(ValueError, match=f"^rejected: 9 of 19 images in {tmp_path}/i/a: more than 0.05 of a folder"):
        packed(tmp_path, max_rejected=0.05)
    packed(tmp_path)
    assert len(reasons(tmp_path)) == 9 and reasons(tmp_path)[0].startswith("DICOM: 24x24 pixels, most have 16x16; ")


@pytest.mark.parametrize(
    "tags, reason",
    [
        ({"ImagePositionPatient": 5, "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, "DICOM: damaged or cut short (TypeError)"),
        ({"RescaleSlope": 1e308}, "DICOM: values that are no numbers (NaN or infinite)"),
    ],
)
def test_one_file_that_cannot_be_used_does_not_end_a_pack(tags, reason, tmp_path):
    series(tmp_path / "i" / "a", 1)
    save(tmp_path / "i" / "a" / "wrong", dataset(stored() + np.uint16(1), 2, **tags))
    assert len(packed(tmp_path)) == 3 and reasons(tmp_path) == [reason]


def test_voxels_that_are_no_numbers_are_refused(tmp_path):
    (tmp_path / "i" / "a").mkdir(parents=True)
    groups = tmp_path / "groups.csv"
    groups.write_text("id,group\n" + "".join(f"a/{k},{k}\n" for k in range(3)))
    for k in range(3):
        voxels = np.full((16, 16, 2), np.nan if k == 1 else 40 * k, np.float32)
        (tmp_path / "i" / "a" / f"{k}.nii").write_bytes(nifti(voxels))
    assert len(packed(tmp_path, groups=str(groups))) == 4
    assert reasons(tmp_path) == ["NIfTI: values that are no numbers (NaN or infinite)"]


def test_frames_of_a_compressed_file_are_read_in_one_walk(tmp_path, monkeypatch):
    from fingerprint_jax.data import dicom

    walks, real = [], encaps.generate_frames
    monkeypatch.setattr(encaps, "generate_frames", lambda *args, **options: walks.append(1) or real(*args, **options))
    found = dataset(stored(20, 4, 4), 1)
    pixels = found.pixel_array
    found.compress(RLELossless, encoding_plugin="pydicom")
    head = dicom.read(save(tmp_path / "a.dcm", found), 100)
    wanted = [0, 3, 19]
    np.testing.assert_array_equal(list(head.values(wanted)), pixels[wanted].astype(float) - 1024)
    assert len(walks) <= 1 + len(wanted)  # one of the file, and one of each frame by itself
