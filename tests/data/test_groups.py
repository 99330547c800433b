from pathlib import Path

import pytest

from fingerprint_jax.data import groups
from fingerprint_jax.data.folders import File, Folder


def image(split, name, digest, patient="", label=0, constant=False):
    folder = Folder(split, Path(split), split, label)
    return File(Path(split, name), folder, name, label, 0, patient or name, known=bool(patient), digest=digest, constant=constant)


def joined(*files):
    said = groups.join_equal(list(files))
    return [file.group for file in files], said


def test_equal_images_are_one_group_across_splits_but_not_real_with_synthetic():
    found, said = joined(
        image("train_real", "a", "x"),
        image("train_real", "b", "y"),
        image("test_real", "b", "x"),
        image("train_generated", "b", "x"),
        image("test_generated", "c", "x"),
        image("train_real", "c", "x"),
    )
    of_real, of_synthetic = "test_real/b", "test_generated/c"
    assert found == [of_real, "b", of_real, of_synthetic, of_synthetic, of_real] and not said


def test_names_that_coincide_join_nothing():
    """Two images called 1, of two splits, with a copy each."""
    found, _ = joined(
        image("reference", "1", "x"), image("reference", "2", "x"), image("test_real", "1", "y"), image("test_real", "2", "y")
    )
    assert found == ["reference/1"] * 2 + ["test_real/1"] * 2


def test_a_name_stands_for_one_group():
    """An image without a patient is not called like one, a patient not like images of several splits and no other."""
    found, said = joined(
        image("reference", "1", "a"),
        image("test_real", "1", "b"),
        image("train_real", "x", "c", "2"),
        image("reference", "2", "d"),
        image("train_real", "3", "e", "3"),
        image("train_real", "y", "f", "3"),
        image("test_real", "4", "g", "4"),
        image("reference", "4", "h", "4"),
        image("train_real", "4", "i"),
        image("train_real", "5", "j", "5"),
    )
    assert found == ["1", "1", "2", "reference/2", "3", "3", *["reference/4"] * 2, "train_real/4", "5"] and not said


def test_patients_that_share_an_image_become_one_with_all_their_images():
    found, said = joined(
        image("train", "1", "x", "p3"),
        image("train", "2", "y", "p3"),
        image("train", "3", "x", "p2"),
        image("train", "4", "z", "p2"),
        image("train", "5", "z"),
        image("train", "6", "u", "p1"),
        image("train", "7", "y", "p9"),
    )
    assert found == ["p2", "p2", "p2", "p2", "p2", "p1", "p2"]
    assert said == ["3 patients became 1, since they share equal images, the first: 'p2', 'p3', 'p9'"]


def test_a_constant_image_joins_no_patient():
    found, said = joined(
        image("train", "1", "black", "p1", constant=True),
        image("train", "2", "black", "p2", label=1, constant=True),
        image("train", "3", "black", label=1, constant=True),
        image("train", "4", "black", constant=True),
        image("train", "5", "x", "p1"),
    )
    assert found == ["p1", "p2", "train/3", "train/3", "p1"] and not said


def test_copies_with_another_label_are_said():
    _, said = joined(image("train", "1", "x"), image("train", "2", "x", label=1), image("test", "3", "x", label=-1))
    assert said == ["1 images have the pixels of an image with another label, the first: train/1 and train/2"]


@pytest.mark.parametrize(
    "names",
    [
        ("1", "1.0"),
        ("01", "1"),
        ("P1", "p1"),
        ("p-1", "p_1", "p 1"),
        ("P01", "P1"),
        ("1000", "1E+03"),
        ("A  B", "A B"),
        ("１", "1"),
    ],
)
def test_names_that_look_like_one(names):
    assert groups.alike([*names, "other"]) == [tuple(sorted(names))]


def test_names_that_look_like_two():
    names = ["1", "10", "100", "1.5", "P1", "P10", "P101", "P1001", "1.2.840.1", "1.2.840.10", "1.20", "a", "b", "nan", "inf"]
    names += ["12345678901234567890", "12345678901234567891", "1e999", "9" * 5000]
    assert groups.alike(names * 2) == []
