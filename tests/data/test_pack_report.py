import dataclasses
import io
from pathlib import Path

import pytest

from fingerprint_jax.data import images, pack_report
from fingerprint_jax.data.folders import File, Folder


def kept(root, count, deep=None):
    folder = Folder(root, Path(root), "train", 0)
    return [File(Path(root, f"{i}.png"), folder, f"{i}", 0, i, f"{i}", info=images.Info(1, "L", 0, deep)) for i in range(count)]


def size(name, wide, high):
    return name, f"{wide}x{high} pixels, most have 64x64; --image_size=N resizes all"


def test_reasons_are_grouped_whatever_names_and_numbers_are_in_them():
    rejected = [size(f"/d/{i}.png", 96, 80) for i in range(55)] + [size(f"/d/x{i}.png", 64, 40) for i in range(40)]
    rejected += [size(f"/d/y{i}.png", i, i) for i in range(1, 7)] + [("/d/a.png", "empty file")]
    rejected += [(f"/d/{i}.jpg", f"its id 'a/{i}' is that of /d/{i}.png but for case or extension: rename one") for i in "12"]
    assert pack_report.by_kind(rejected) == [
        "101 images of other sizes than 64x64: 55 x 96x80, 40 x 64x40, 1 x 1x1, 1 x 2x2, 1 x 3x3 and 3 sizes more;"
        " --image_size=N resizes all, for example /d/0.png",
        "2 files, its id 'a/1' is that of /d/1.png but for case or extension: rename one, for example /d/1.jpg",
        "/d/a.png: empty file",
    ]
    assert pack_report.by_kind([]) == []


def test_at_most_so_many_lines():
    out = io.StringIO()
    pack_report.report_rejected([(f"/d/{i}.png", "x" * i) for i in range(1, 24)], out)
    text = out.getvalue()
    assert len(text.splitlines()) == pack_report.SHOWN + 1 and text.endswith("rejected: 3 more kinds of reasons\n")


@pytest.mark.parametrize(
    "path, reason, counts",
    [
        ("a.png", "empty file", True),
        ("a.JPG", "a link that leaves the folder", True),
        ("=a.png", "the name starts with '='", True),
        ("a.tif", f"{images.NOT_NAMED}: a TIFF inside", True),
        ("0f3c", "DICOM: no patient in it", True),
        ("0f3c", "NIfTI: scl_slope nan", True),
        ("0f3c", images.NO_IMAGE, False),
        ("closed", "cannot be listed: Permission denied", True),
        ("a.txt", images.NOT_NAMED, False),
        ("Thumbs.db", images.NOT_NAMED, False),
        ("=a.csv", "the name starts with '='", False),
        ("up", "a link to a folder", False),
    ],
)
def test_which_files_count_as_lost_images(path, reason, counts):
    assert pack_report.is_image(path, reason) == counts


def test_the_share_is_that_of_each_folder():
    files = kept("/d/a", 19) + kept("/d/b", 100)
    folders = [Folder("a", Path("/d/a"), "train", 0), Folder("b", Path("/d/b"), "train", 1)]
    one, two = [("/d/a/x.png", "empty file")], [("/d/a/x.png", "empty file"), ("/d/a/sub/y.png", "empty file")]
    pack_report.require_share(folders, files, one, 0.05)
    with pytest.raises(ValueError, match="^rejected: 2 of 21 images in /d/a: more than 0.05 of a folder"):
        pack_report.require_share(folders, files, two, 0.05)
    pack_report.require_share(folders, files, two, 2 / 21)
    pack_report.require_share(folders, files, [("/d/x.png", "not in a class folder")] * 6, 0.05)  # 6 of 125
    with pytest.raises(ValueError, match="7 of 126 images in /d:"):
        pack_report.require_share(folders, files, [("/d/x.png", "not in a class folder")] * 7, 0.05)


def test_one_number_of_bits_for_all_folders():
    (line,) = pack_report.dark(kept("/a", 3, (3, 4000)))
    assert line.startswith(
        "/a: the values of its 3 16-bit images go from 3 to 4000, of 65535: 17 of 256 grey levels are left; give"
    )
    assert ["--bits=12" in line for line in pack_report.dark(kept("/a", 3, (3, 4000)) + kept("/b", 1, (0, 900)))] == [True, True]
    (line,) = pack_report.dark(kept("/a", 3, (3, 4000)) + kept("/b", 1, (0, 65000)))
    assert line.startswith("/a: ") and "other folders go up to 65000, bring them to one scale" in line
    assert pack_report.dark(kept("/a", 3) + kept("/b", 2, (7, 7)) + kept("/c", 1, (0, 2**15))) == []


def test_a_few_pixels_of_padding_hide_no_depth():
    files = kept("/a", 3, (0, 65535))
    assert pack_report.dark(files) == []
    few = [dataclasses.replace(file, info=dataclasses.replace(file.info, common=4000)) for file in files]
    (line,) = pack_report.dark(few)
    assert line.startswith(
        "/a: 99 of 100 values of its 3 16-bit images go from 0 to 4000, a few up to 65535: 17 of 256 grey levels"
    )
    many = [dataclasses.replace(file, info=dataclasses.replace(file.info, common=40000)) for file in files]
    assert pack_report.dark(many) == []


def test_likeness_is_by_digest():
    a, b = kept("/a", 2)
    a.digest, b.digest = "x", "y"
    assert [pack_report.likeness(a, b), pack_report.likeness(a, a)] == ["near", "exact"]
    assert pack_report.class_name("images", ["c"], a) == "c"
