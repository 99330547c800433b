import csv
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import flags
from PIL import Image

from fingerprint_jax import pack
from fingerprint_jax.data import builder, folders, images, packing
from fingerprint_jax.data.source import Source
from fingerprint_jax.runs.views import fold_of
from fingerprint_jax.runtime.names import printable
from tests.data.test_images import chunk, encode, png

RNG = np.random.default_rng(0)


def save(path, pixels=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (16, 16), dtype=np.uint8) if pixels is None else pixels
    Image.fromarray(pixels).save(path, **options)
    return pixels


def subtask1(root, count=2):
    """Folders of subtask 1: {path below root: pixels}."""
    names = ["train/generated", "train/real_used", "train/real_not_used", "test/generated", "test/real_unknown", "reference"]
    return {f"{name}/{i}.png": save(root / f"{name}/{i}.png") for name in names for i in range(count)}


def classes(root, count=3):
    for name in "ab":
        for i in range(count):
            save(root / name / f"{i}.png")
    return root


def read(data_dir, task, split):
    source = tfds.builder_from_directory(str(builder.dataset_dir(data_dir, task))).as_data_source(split)
    return {r["id"].decode(): (r["label"], r["group"].decode(), r["image"]) for r in source}


def table(data_dir, task, name):
    with open(builder.dataset_dir(data_dir, task) / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(**values):
    """The binary in this process, with flags of its own."""
    own = flags.FlagValues()
    pack.define_flags(own)
    own(["pack", *(f"--{key}={value}" for key, value in values.items())])
    with warnings.catch_warnings():
        before = signal.getsignal(signal.SIGTERM)
        try:
            pack.main(own)
        finally:
            signal.signal(signal.SIGTERM, before)


def test_subtask1_packs_pixels_labels_and_groups(tmp_path, capsys):
    sources = subtask1(tmp_path)
    groups = tmp_path / "groups.csv"
    groups.write_text("split,id,group\ntrain_real,real_used/0,p7\ntrain_real,real_not_used/1,p7\n")
    data = tmp_path / "data"
    summary = packing.pack("subtask1", data, tmp_path / "train", tmp_path / "test", tmp_path / "reference", groups=groups)
    assert read(data, "subtask1", "train_real").keys() == {"real_not_used/0", "real_not_used/1", "real_used/0", "real_used/1"}
    expected = {
        "train_generated": ("train/generated/", "", 1),
        "test_generated": ("test/generated/", "", 1),
        "test_real": ("test/real_unknown/", "", -1),
        "reference": ("reference/", "", 0),
        "train_real": ("train/", "real_used/", 1),
    }
    for split, (folder, prefix, label) in expected.items():
        got = read(data, "subtask1", split)
        for i in range(2):
            assert got[f"{prefix}{i}"][0] == label
            np.testing.assert_array_equal(got[f"{prefix}{i}"][2][..., 0], sources[f"{folder}{prefix}{i}.png"])
    got = read(data, "subtask1", "train_real")
    assert {k: v[1] for k, v in got.items()} == {
        "real_used/0": "p7",
        "real_used/1": "real_used/1",
        "real_not_used/0": "real_not_used/0",
        "real_not_used/1": "p7",
    }
    assert summary == json.loads((builder.dataset_dir(data, "subtask1") / "summary.json").read_text())
    assert summary["image_shape"] == [16, 16, 1] and summary["classes"] == ["not_used", "used"]
    assert summary["version"] == "1.0.0" and summary["rejected"] == 0
    assert summary["splits"]["train_real"]["count"] == 4
    assert {name: s["classes"] for name, s in summary["splits"].items()} == {
        "train_generated": {"synthetic": 2},
        "test_generated": {"synthetic": 2},
        "train_real": {"not_used": 2, "used": 2},
        "test_real": {"unknown": 2},
        "reference": {"not_used": 2},
    }
    out = capsys.readouterr()
    assert "train_real" in out.out and summary["splits"]["train_real"]["fingerprint"][:12] in out.out
    assert out.err.splitlines() == [
        f"warning: {groups}: 10 images are not in it, the first is 'train_generated 0'",
        "decoding 12 images",
        "writing 12 images",
    ]


def test_subtask2_without_a_test_folder(tmp_path):
    for k in range(1, 6):
        save(tmp_path / f"real/t{k}/x.png")
        save(tmp_path / f"generated/gen_t{k}/x.png")
    summary = packing.pack("subtask2", tmp_path / "data", tmp_path)
    assert {k: v[0] for k, v in read(tmp_path / "data", "subtask2", "train_real").items()} == {f"t{k + 1}/x": k for k in range(5)}
    assert set(summary["splits"]) == {"train_generated", "train_real"}


def test_records_lie_in_the_order_of_digests_of_their_pixels_equal_ones_of_their_ids(tmp_path):
    values = {"10": 7, "2": 8, "B": 7, "a": 9, "sub/1": 10}
    for name, value in values.items():
        save(tmp_path / "i" / "c" / f"{name}.png", np.full((16, 16), value, np.uint8))
    packing.pack("images", tmp_path / "data", tmp_path / "i")

    def digest(name):
        return hashlib.sha256(repr((16, 16)).encode() + bytes([values[name]]) * 256).digest()

    expected = [f"c/{name}" for name in sorted(values, key=lambda name: (digest(name), name))]
    assert list(read(tmp_path / "data", "images", "train")) == expected != sorted(expected)
    assert [row["id"] for row in table(tmp_path / "data", "images", "files.csv")] == expected


def test_fingerprint_is_of_the_content_not_of_the_files(tmp_path):
    root = classes(tmp_path / "a")
    first = packing.pack("images", tmp_path / "d1", root)["splits"]["train"]["fingerprint"]
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            image.load()
        image.convert("P").save(path, compress_level=1)
    assert packing.pack("images", tmp_path / "d2", root)["splits"]["train"]["fingerprint"] == first

    digest = hashlib.sha256()
    for id, (label, group, image) in read(tmp_path / "d2", "images", "train").items():
        pixels = hashlib.sha256(repr(image.shape[:2]).encode() + image.tobytes()).hexdigest()
        digest.update(json.dumps([id, label, group, pixels]).encode())
    assert digest.hexdigest() == first

    (tmp_path / "groups.csv").write_text("id,group\na/0,g\na/1,g\n")
    assert packing.pack("images", tmp_path / "d3", root, groups=tmp_path / "groups.csv")["splits"]["train"]["fingerprint"] != first
    (root / "a" / "0.png").rename(root / "b" / "9.png")
    assert packing.pack("images", tmp_path / "d4", root)["splits"]["train"]["fingerprint"] != first


def test_files_table_says_what_the_files_are(tmp_path):
    save(tmp_path / "i/a/2.png")
    save(tmp_path / "i/a/1.png", RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    save(tmp_path / "i/b/3.jpg", comment=b"by hand")
    packing.pack("images", tmp_path / "data", tmp_path / "i")
    rows = table(tmp_path / "data", "images", "files.csv")
    size = {p.stem: str(p.stat().st_size) for p in (tmp_path / "i").rglob("*.*")}
    assert sorted(tuple(row.values()) for row in rows) == [
        ("train", "a/1", "0", "a/1", size["1"], "RGB", "0", "0"),
        ("train", "a/2", "0", "a/2", size["2"], "L", "0", "1"),
        ("train", "b/3", "1", "b/3", size["3"], "L", "7", "0"),
    ]


def test_files_table_reads_back_as_the_records(tmp_path):
    root = tmp_path / "i"
    names = ["'quoted'", 'ü "q", r', " b", "c=d", "<i>", "a;b\\n", "#"]
    for name in names:
        save(root / "a" / f"{name}.png")
        save(root / "b" / f"{name}.png")
    with (tmp_path / "groups.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "group"), *((f"a/{name}", name) for name in names)])
    for split in ("train", "test"):
        packing.pack("images", tmp_path / split, root, root if split == "test" else "", groups=tmp_path / "groups.csv")
        source = Source(str(tmp_path / split), "images")
        rows = {s: source.rows(s) for s in source.splits}
        found = folders.read_files(builder.dataset_dir(tmp_path / split, "images") / "files.csv")
        assert found == {s: list(zip(r.ids.tolist(), r.labels.tolist(), r.groups.tolist(), strict=True)) for s, r in rows.items()}
        assert set(found) == {"train", split} and len(found["train"]) == 14


def grey(width=16, fill=None):
    return RNG.integers(0, 256, (16, width), dtype=np.uint8) if fill is None else np.full((16, width), fill)


GOOD = encode(grey())
BROKEN = GOOD[:60] + bytes([GOOD[60] ^ 1]) + GOOD[61:]
FRAMES = {"save_all": True, "append_images": [Image.fromarray(np.zeros((16, 16), np.uint8))]}
BAD = {  # below the training folder: (bytes, reason)
    "a/crc.png": (BROKEN, "damaged: broken PNG file (bad header checksum in b'IDAT')"),
    "a/cut.png": (GOOD[:-20], "damaged: Truncated File Read"),
    "a/empty.png": (b"", "empty file"),
    "a/notes.txt": (b"x", "not named .png, .jpg or .jpeg"),
    "a/text.png": (b"id,label\n", "neither a PNG nor a JPEG inside, or its header is damaged"),
    "a/nan.png": (
        encode(grey(fill=np.float32("nan")), "TIFF"),
        "neither a PNG nor a JPEG inside, or its header is damaged",
    ),
    "a/gif.png": (encode(grey(), "GIF"), "neither a PNG nor a JPEG inside, or its header is damaged"),
    "a/photo.png": (encode(grey(), "JPEG"), "a JPEG under a .png name"),
    "a/1.jpg": (GOOD, "a PNG under a .jpg name"),
    "b/1.png": (GOOD, "its id 'b/1' is that of {root}/b/1.jpg but for case or extension: rename one"),
    "b/c.png": (GOOD, "its id 'b/c' is that of {root}/b/C.png but for case or extension: rename one"),
    "a/moving.png": (encode(grey(), **FRAMES), "2 frames, one is expected"),
    "a/bomb.png": (
        png(9000, 9000, chunk(b"IDAT", zlib.compress(bytes(9001 * 9000)))),
        "9000x9000 is more than 16777216 pixels (--max_pixels)",
    ),
    "a/words.png": (
        png(16, 16, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**7)))),
        "damaged: Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK",
    ),
    "b/wide.png": (encode(grey(20)), "20x16 pixels, most have 16x16; --image_size=N resizes all"),
    "a/two\nlines.png": (GOOD, "the name holds unprintable characters, or bytes that are not UTF-8"),
    os.fsdecode(b"a/\xfc.png"): (GOOD, "the name holds unprintable characters, or bytes that are not UTF-8"),
    "stray.png": (GOOD, "not in a class folder"),
    "a/locked.png": (GOOD, "cannot be read: Permission denied"),
    "a/unlisted/1.png": (GOOD, None),
    "a/closed/1.png": (GOOD, "cannot be read: Permission denied"),
}
LINKS = {  # (where it leads, reason)
    "a/out.png": ("/etc/passwd", "a link that leaves the folder"),
    "a/up": ("../..", "a link that leaves the folder"),
    "a/loop": (".", "a link to a folder"),
    "a/self.png": ("self.png", "cannot be read: Too many levels of symbolic links"),
    "a/nothing.png": ("nowhere", "cannot be read: No such file or directory"),
}
KEPT = {"a/0": 0, "a/1": 0, "a/2": 0, "b/0": 1, "b/1": 1, "b/2": 1, "b/C": 1}
KEPT |= {"a/<img onerror=alert(1)>": 0, "a/=cmd": 0, "a/cmyk": 0, "a/turned": 0, "a/link": 0}

# File modes count for root too once CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH are out of its bounding set (PR_CAPBSET_DROP).
WITHOUT_PRIVILEGES = """if True:
    import ctypes, os, sys
    prctl = ctypes.CDLL(None).prctl
    if os.geteuid() == 0 and (prctl(24, 1, 0, 0, 0) or prctl(24, 2, 0, 0, 0)):
        sys.exit(77)
    os.execv(sys.executable, [sys.executable, "-m", "fingerprint_jax.pack", *sys.argv[1:]])
"""


def packed(data_dir, *arguments):
    values = flags.FlagValues()
    pack.define_flags(values)
    values(["pack", f"--data_dir={data_dir}", *arguments])
    pack.main(values)


def binary(*arguments):
    """The binary in a process of its own, which file modes bind even for root."""
    command = [sys.executable, "-c", WITHOUT_PRIVILEGES, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[1])
    if done.returncode == 77:
        pytest.skip("root here may read every file and cannot give that up")
    return done


def test_every_bad_file_is_named_with_a_reason_and_the_others_are_packed(tmp_path):
    root = classes(tmp_path / "i")
    save(root / "b" / "1.jpg")
    save(root / "b" / "C.png")
    for name in ("<img onerror=alert(1)>", "=cmd"):
        save(root / "a" / f"{name}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / "a" / "turned.png", exif=exif)
    Image.fromarray(RNG.integers(0, 256, (16, 16, 4), dtype=np.uint8), "CMYK").save(root / "a" / "cmyk.jpg")
    (root / "a" / "link.png").symlink_to("0.png")
    expected = {f"{root}/{printable(name)}": reason.format(root=root) for name, (_, reason) in BAD.items() if reason}
    for name, (content, _) in BAD.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    for name, (target, reason) in LINKS.items():
        (root / name).symlink_to(target)
        expected[f"{root}/{name}"] = reason
    os.mkfifo(root / "a" / "pipe.png")
    expected |= {f"{root}/a/pipe.png": "not a regular file", f"{root}/a/unlisted": "cannot be listed: Permission denied"}
    (root / "a" / "locked.png").chmod(0)
    (root / "a" / "unlisted").chmod(0)
    (root / "a" / "closed").chmod(0o644)  # its names can be listed, its files not be opened

    place = ["--task=images", f"--train_dir={root}", f"--data_dir={tmp_path}/data"]
    done = binary(*place, "--strict")
    assert done.returncode == 1 and not (tmp_path / "data").exists()
    assert done.stderr.splitlines()[-1].startswith(f"pack: error: {len(expected)} files rejected (--strict), the first: {root}/")
    done = binary(*place)
    assert done.returncode == 1 and not (tmp_path / "data").exists()
    assert f"20 of 28 images in {root}/a, " in done.stderr.splitlines()[-1]
    done = binary(*place, "--max_rejected=1")
    assert done.returncode == 0 and done.stderr.splitlines() == ["decoding 28 images", "writing 12 images"], done.stderr
    rows = table(tmp_path / "data", "images", "rejected.csv")
    assert {row["file"]: row["reason"] for row in rows} == expected and len(rows) == len(expected) == 27
    lines = [line.removeprefix("rejected: ") for line in done.stdout.splitlines() if line.startswith("rejected: ")]
    assert sum(int(line.split()[0]) if line[0].isdigit() else 1 for line in lines) == len(rows)
    assert done.stdout.splitlines()[-2:] == [
        f"rejected files: {len(rows)}",
        f"packed: {tmp_path}/data/fingerprint/images/1.0.0",
    ]
    assert {id: label for id, (label, _, _) in read(tmp_path / "data", "images", "train").items()} == KEPT


def test_other_sizes_are_resized_when_asked(tmp_path):
    root = classes(tmp_path / "i")
    save(root / "b" / "wide.png", np.zeros((16, 20), np.uint8))
    assert packing.pack("images", tmp_path / "resized", root, image_size=8)["image_shape"] == [8, 8, 1]
    assert "b/wide" in read(tmp_path / "resized", "images", "train")


def test_class_folders_that_differ_in_case_only(tmp_path):
    root = classes(tmp_path / "i")
    save(root / "A" / "0.png")
    with pytest.raises(ValueError, match=f"^no image in {root}/a; {root}/a/0.png: its id 'a/0' is that of {root}/A/0.png"):
        for i in (1, 2):
            save(root / "A" / f"{i}.png")
        packing.pack("images", tmp_path / "data", root)


def test_a_group_that_tables_cannot_hold_is_refused(tmp_path):
    (tmp_path / "groups.csv").write_text("id,group\na/0,=1+1\n")
    with pytest.raises(
        ValueError, match="groups.csv, line 2: the group '=1.1' starts with '=', which spreadsheets take for a formula"
    ):
        packing.pack("images", tmp_path / "data", classes(tmp_path / "i"), groups=tmp_path / "groups.csv")
    assert not (tmp_path / "data").exists()


# Packs, and stops for long before the data set takes its place.
STOPPING = """if True:
    import sys, time
    from fingerprint_jax.data import builder, packing
    write = builder.write
    def stopping(*rest):
        write(*rest)
        print("written", flush=True)
        time.sleep(600)
    builder.write = stopping
    packing.pack("images", *sys.argv[1:])
"""


def test_one_pack_at_a_time_and_what_a_killed_one_left_is_removed(tmp_path):
    root, data = classes(tmp_path / "i"), tmp_path / "data"
    place = data / "fingerprint" / "images"
    command = [sys.executable, "-c", STOPPING, data, root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=pathlib.Path(__file__).parents[1]) as running:
        try:
            assert running.stdout and running.stdout.readline() == "written\n"
            (work,) = place.glob(".pack-*")
            files = sorted(work.rglob("*"))
            with pytest.raises(ValueError, match=f"^another pack is writing {place}/1.0.0: wait for it"):
                packing.pack("images", data, root)
            assert list(place.glob(".pack-*")) == [work] and sorted(work.rglob("*")) == files
        finally:
            running.kill()
    assert work.exists() and not (place / "1.0.0").exists()
    packing.pack("images", data, root)
    assert os.listdir(place) == ["1.0.0"] and len(read(data, "images", "train")) == 6


def test_the_old_data_returns_when_its_pack_was_killed_between_the_renames(tmp_path):
    root, data = classes(tmp_path / "i"), tmp_path / "data"
    place = data / "fingerprint" / "images"
    packing.pack("images", data, root)
    (place / ".pack-killed_1").mkdir()
    (place / "1.0.0").rename(place / ".pack-killed_1" / "replaced")
    with pytest.raises(ValueError, match="is there already"):
        packing.pack("images", data, root)
    assert os.listdir(place) == ["1.0.0"] and len(read(data, "images", "train")) == 6


def test_a_lock_that_was_removed_meanwhile_does_not_count(tmp_path, monkeypatch):
    def late(*_):
        (tmp_path / ".packing").unlink()
        (tmp_path / ".packing").touch()  # by the next pack

    monkeypatch.setattr(packing.fcntl, "flock", late)
    with pytest.raises(ValueError, match="another pack is writing"), packing._alone(tmp_path / "1.0.0"):
        pass
    assert (tmp_path / ".packing").exists()


def test_a_lock_that_is_a_link_or_a_pipe_is_refused(tmp_path):
    (tmp_path / "mine").write_text("my keys")
    (tmp_path / ".packing").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"\.packing: a link, expected a file"), packing._alone(tmp_path / "1.0.0"):
        pass
    assert (tmp_path / "mine").read_text() == "my keys"
    (tmp_path / ".packing").unlink()
    os.mkfifo(tmp_path / ".packing")
    with pytest.raises(ValueError, match=r"\.packing: a pipe, expected a file"), packing._alone(tmp_path / "1.0.0"):
        pass
    (tmp_path / ".packing").unlink()
    (tmp_path / ".packing").write_text("my notes")
    with pytest.raises(ValueError, match=r"\.packing: no lock of ours, it is not removed"), packing._alone(tmp_path / "1.0.0"):
        pass
    assert (tmp_path / ".packing").read_text() == "my notes"


def test_only_what_a_pack_began_is_removed_by_the_next(tmp_path):
    for name in (".pack-killed_1", ".pack-list", ".pack-2024-scans"):
        (tmp_path / name).mkdir()
    with packing._alone(tmp_path / "1.0.0"):
        assert sorted(os.listdir(tmp_path)) == [".pack-2024-scans", ".pack-list", ".packing"]


def test_a_link_in_place_of_what_a_killed_pack_left_brings_no_folder(tmp_path):
    (tmp_path / "mine" / "replaced").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".pack-killed_1").symlink_to(tmp_path / "mine")
    with packing._alone(tmp_path / "data" / "1.0.0"):
        pass
    assert (tmp_path / "mine" / "replaced").is_dir() and not (tmp_path / "data" / "1.0.0").exists()


def test_strict_makes_any_rejection_fatal(tmp_path):
    root = classes(tmp_path / "i")
    (root / "a" / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 files rejected \(--strict\), the first: .*a/x.png: empty file"):
        packing.pack("images", tmp_path / "data", root, strict=True)
    assert not (tmp_path / "data").exists()


def test_an_existing_data_set_needs_overwrite(tmp_path):
    root, data = classes(tmp_path / "i"), tmp_path / "data"
    before = packing.pack("images", data, root)
    save(root / "a" / "new.png")
    with pytest.raises(ValueError, match="data/fingerprint/images/1.0.0 is there already: give --overwrite"):
        packing.pack("images", data, root)
    after = packing.pack("images", data, root, overwrite=True)
    assert after["splits"]["train"]["count"] == before["splits"]["train"]["count"] + 1 == len(read(data, "images", "train"))
    assert os.listdir(data / "fingerprint" / "images") == ["1.0.0"]


@pytest.mark.parametrize("name", ["thesis.txt", "notes/a.txt", "files.csv/a.txt"])
def test_what_is_none_of_a_data_sets_files_is_not_replaced(name, tmp_path):
    root, data = classes(tmp_path / "i"), tmp_path / "data"
    path = builder.dataset_dir(data, "images") / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(ValueError, match=f"{name.partition('/')[0]} is none of a data set's files, .*: move it away"):
        packing.pack("images", data, root, overwrite=True)
    assert path.read_text() == "mine"


def test_a_reference_of_images_that_are_asked_about_is_said(tmp_path, capsys):
    subtask1(tmp_path / "i", count=3)
    for number, other in enumerate(("train/real_used/0.png", "test/real_unknown/1.png")):
        shutil.copy(tmp_path / "i" / other, tmp_path / "i" / "reference" / f"{number}.png")
    lines = "reference,2,p\ntrain_real,real_not_used/2,p\n"
    (tmp_path / "groups.csv").write_text("split,id,group\n" + lines)
    folders = [tmp_path / "i" / name for name in ("train", "test", "reference")]
    packing.pack("subtask1", tmp_path / "a", *folders)
    assert "reference: 2 images, or other images of their patients, are in train or test too" in capsys.readouterr().err
    packing.pack("subtask1", tmp_path / "b", *folders, groups=tmp_path / "groups.csv")
    assert "reference: 3 images, or other images of their patients" in capsys.readouterr().err


def test_a_path_that_is_not_utf_8_is_refused_before_anything_is_written(tmp_path):
    root = classes(tmp_path / "i")
    with pytest.raises(ValueError, match="has bytes that are no UTF-8: give another --data_dir"):
        packing.pack("images", tmp_path / os.fsdecode(b"bad\xff"), root)
    assert os.listdir(tmp_path) == ["i"]


def test_a_failure_in_the_middle_leaves_nothing_behind_and_the_old_data_in_place(tmp_path, monkeypatch):
    root, data = classes(tmp_path / "i"), tmp_path / "deep" / "data"
    decode, seen = images.decode, set()

    def changing(path, *rest):
        pixels, info = decode(path, *rest)
        changed = path in seen and path.name == "2.png"
        seen.add(path)
        return (pixels ^ 1 if changed else pixels), info

    with monkeypatch.context() as patch:
        patch.setattr(images, "decode", changing)
        with pytest.raises(ValueError, match="2.png: changed while it was packed"):
            packing.pack("images", data, root)
        assert not (tmp_path / "deep").exists()
        seen.clear()
        patch.undo()
        before = packing.pack("images", data, root)
        patch.setattr(images, "decode", changing)
        with pytest.raises(ValueError, match="changed while it was packed"):
            packing.pack("images", data, root, overwrite=True)
    assert os.listdir(data / "fingerprint" / "images") == ["1.0.0"]
    assert json.loads((builder.dataset_dir(data, "images") / "summary.json").read_text()) == before
    assert len(read(data, "images", "train")) == 6


@pytest.mark.parametrize("name", ["._mine", "lost+found", "mine"])
def test_a_folder_is_not_removed_whatever_its_name(name, tmp_path):
    root = classes(tmp_path / "i")
    packing.pack("images", tmp_path / "data", root)
    folder = builder.dataset_dir(tmp_path / "data", "images") / name
    folder.mkdir()
    (folder / "notes.txt").write_text("precious")
    with pytest.raises(ValueError, match=re.escape(f"{folder} is none of a data set's files, and --overwrite would remove it")):
        packing.pack("images", tmp_path / "data", root, overwrite=True)
    assert (folder / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize("at", [1, 2])
def test_the_old_data_returns_when_the_new_cannot_take_its_place(at, tmp_path, monkeypatch):
    root, data = classes(tmp_path / "i"), tmp_path / "data"
    before = packing.pack("images", data, root)
    replace, calls = os.replace, []

    def failing(source, target):
        calls.append(source)
        if len(calls) == at == 2:
            raise OSError(28, "No space left on device")
        replace(source, target)
        if len(calls) == at == 1:  # a signal, just after
            raise SystemExit(143)

    monkeypatch.setattr(packing.os, "replace", failing)
    with pytest.raises(OSError if at == 2 else SystemExit, match="No space left" if at == 2 else "143"):
        packing.pack("images", data, root, overwrite=True)
    assert json.loads((builder.dataset_dir(data, "images") / "summary.json").read_text()) == before
    assert os.listdir(data / "fingerprint" / "images") == ["1.0.0"]


def test_empty_class_folders_are_named(tmp_path):
    root = classes(tmp_path / "i")
    (root / "c").mkdir()
    with pytest.raises(ValueError, match=f"^no image in {root}/c$"):
        packing.pack("images", tmp_path / "data", root)
    (root / "c" / "x.png").write_text("x")
    with pytest.raises(ValueError, match=f"^no image in {root}/c; {root}/c/x.png: neither a PNG"):
        packing.pack("images", tmp_path / "data", root)


def test_labels_from_a_table(tmp_path, capsys):
    root = tmp_path / "i"
    for i in range(4):
        save(root / f"{i}.png")
    labels = root / "labels.csv"  # beside the images
    labels.write_text("id,class\n0,mild\n1,absent\n2,mild\n")
    summary = packing.pack("images", tmp_path / "d1", root, labels=labels)
    assert summary["classes"] == ["absent", "mild"] and summary["rejected"] == 0
    assert summary["splits"]["train"]["classes"] == {"absent": 1, "mild": 2, "unknown": 1}
    assert {k: v[0] for k, v in read(tmp_path / "d1", "images", "train").items()} == {"0": 1, "1": 0, "2": 1, "3": -1}
    assert "1 images are not in it, the first is 'train 3'" in capsys.readouterr().err
    labels.write_text("id,label\n0,10\n1,2\n2,0\n3,2\n")
    assert packing.pack("images", tmp_path / "d2", root, labels=labels)["classes"] == ["0", "2", "10"]
    save(tmp_path / "test" / "0.png")  # another image of that name
    with pytest.raises(ValueError, match="labels.csv: '0' is an image of train and one of test: give the CSV a column `split`"):
        packing.pack("images", tmp_path / "d3", root, tmp_path / "test", labels=labels)
    assert not (tmp_path / "d3").exists()
    labels.write_text("split,id,label\ntrain,0,1\ntrain,1,2\ntrain,2,1\ntest,0,2\n")
    summary = packing.pack("images", tmp_path / "d4", root, tmp_path / "test", labels=labels)
    assert summary["splits"]["test"]["classes"]["2"] == 1
    labels.write_text("id,label\nx0,1\n")
    with pytest.raises(
        ValueError, match="labels.csv: none of its ids is that of an image: its first is 'x0', that of an image '0'"
    ):
        packing.pack("images", tmp_path / "d3", root, labels=labels)
    with pytest.raises(ValueError, match="--labels is for the task images"):
        packing.pack("subtask2", tmp_path / "d3", root, labels=labels)


def test_duplicates_across_splits_and_classes(tmp_path, capsys):
    sources = subtask1(tmp_path)
    twin = sources["train/real_used/0.png"]
    save(tmp_path / "test/real_unknown/copy.png", twin)
    save(tmp_path / "train/real_used/again.png", twin)
    save(tmp_path / "train/generated/close.png", np.clip(twin.astype(int) + RNG.integers(-3, 4, (16, 16)), 0, 255).astype(np.uint8))
    packing.pack("subtask1", tmp_path / "data", tmp_path / "train", tmp_path / "test")
    rows = table(tmp_path / "data", "subtask1", "duplicates.csv")
    found = {(row["kind"], row["split"], row["id"], row["other_split"], row["other_id"]) for row in rows}
    one, two, three = ("train_real", "real_used/0"), ("test_real", "copy"), ("train_generated", "close")
    again = ("train_real", "real_used/again")
    exact = {pair[1:] for pair in found if pair[0] == "exact"}
    # Of two equal images the first by id, but for the image itself.
    assert exact == {(*one, *two), (*again, *two), (*two, *one), (*one, *again), (*again, *one)}
    near = {pair for pair in found if pair[0] == "near"}
    assert {pair[1:3] for pair in near} == {one, two, three, again} and len(near) == 5
    for row in rows:
        assert (row["correlation"] == "1.0000") == (row["kind"] == "exact")
    out = capsys.readouterr().out
    assert "images with an exact or near duplicate in another split or class: 4" in out
    assert "exact: 1 of test_real/unknown, 2 of train_real/used" in out
    assert "images with an exact or near duplicate in their own split and class: 2" in out
    assert "exact: 2 of train_real/used, copies are in one group" in out
    assert "near: 1 of train_generated/synthetic, 2 of train_real/used" in out


def held_out(data_dir, task, split, folds=2, seed=0):
    """The fold of every image of a split: {id: fold}."""
    rows = Source(str(data_dir), task).rows(split)
    return dict(zip(rows.ids.tolist(), fold_of(rows, folds, seed).tolist(), strict=True))


def test_copies_within_a_class_lie_in_one_fold(tmp_path, capsys):
    root = tmp_path / "i"
    for name in "ab":
        for i in range(12):
            pixels = save(root / name / f"{i}.png")
            Image.fromarray(pixels).convert("RGB").save(root / name / f"z{i}.png")  # another file, the same pixels
            Image.fromarray(pixels.astype(np.uint16) * 257).save(root / name / f"sub{i}.png")
    summary = packing.pack("images", tmp_path / "data", root, strict=True)
    assert summary["splits"]["train"]["count"] == 72 and summary["splits"]["train"]["groups"] == 24
    for seed in range(3):
        fold = held_out(tmp_path / "data", "images", "train", seed=seed)
        for name in "ab":
            assert all(fold[f"{name}/{i}"] == fold[f"{name}/z{i}"] == fold[f"{name}/sub{i}"] for i in range(12))
        assert set(fold.values()) == {0, 1}
    assert "exact: 36 of train/a, copies are in one group" in capsys.readouterr().out
    source = Source(str(tmp_path / "data"), "images")
    rows = source.rows("train")
    digests = source.digests(rows.index)
    held = np.array([fold[name] == 0 for name in rows.ids.tolist()])
    assert not set(digests[held]) & set(digests[~held])


def test_images_that_are_equal_once_they_are_resized_are_copies(tmp_path):
    root = classes(tmp_path / "i")
    with Image.open(root / "a" / "0.png") as image:
        image.resize((8, 8), Image.Resampling.BILINEAR).save(root / "b" / "small.png")
    packing.pack("images", tmp_path / "data", root, image_size=8)
    found = read(tmp_path / "data", "images", "train")
    assert found["a/0"][1] == found["b/small"][1] == "train/a/0"
    (row, _) = [row for row in table(tmp_path / "data", "images", "duplicates.csv") if row["kind"] == "exact"]
    assert (row["id"], row["other_id"]) == ("a/0", "b/small")


def test_near_duplicates_within_a_class_are_listed_but_for_those_of_one_patient(tmp_path, capsys):
    root = classes(tmp_path / "i")
    with Image.open(root / "a" / "0.png") as image:
        pixels = np.asarray(image)
    save(root / "a" / "like.png", pixels // 2)
    packing.pack("images", tmp_path / "d1", root)
    found = [(row["kind"], row["id"], row["other_id"]) for row in table(tmp_path / "d1", "images", "duplicates.csv")]
    assert found == [("near", "a/0", "a/like"), ("near", "a/like", "a/0")]
    assert "near: 2 of train/a, their twins are in other groups" in capsys.readouterr().out
    (tmp_path / "g.csv").write_text("id,group\na/0,p\na/like,p\n")
    packing.pack("images", tmp_path / "d2", root, groups=tmp_path / "g.csv")
    assert not table(tmp_path / "d2", "images", "duplicates.csv")


def test_a_copy_with_another_label_is_a_warning_and_joins_the_groups(tmp_path, capsys):
    root = classes(tmp_path / "i")
    (root / "b" / "copy.png").write_bytes((root / "a" / "0.png").read_bytes())
    (tmp_path / "g.csv").write_text("id,group\na/0,p2\na/1,p2\nb/copy,p1\nb/1,p1\n")
    summary = packing.pack("images", tmp_path / "data", root, groups=tmp_path / "g.csv")
    groups = {id: group for id, (_, group, _) in read(tmp_path / "data", "images", "train").items()}
    assert groups == {"a/0": "p1", "a/1": "p1", "a/2": "a/2", "b/0": "b/0", "b/1": "p1", "b/2": "b/2", "b/copy": "p1"}
    assert summary["splits"]["train"]["groups"] == 4 and summary["splits"]["train"]["without_patient"] == 3
    err = capsys.readouterr().err
    assert (
        f"warning: 1 images have the pixels of an image with another label, the first: {root}/a/0.png and {root}/b/copy.png" in err
    )
    assert "warning: 2 patients became 1, since they share equal images, the first: 'p1', 'p2'" in err


def test_blank_images_join_no_patients(tmp_path, capsys):
    root = classes(tmp_path / "i")
    for name in ("a/x", "a/y", "b/z", "b/w"):
        save(root / f"{name}.png", np.zeros((16, 16), np.uint8))
    (tmp_path / "g.csv").write_text("id,group\na/x,p1\na/0,p1\na/y,p2\na/1,p2\n")
    summary = packing.pack("images", tmp_path / "data", root, groups=tmp_path / "g.csv")
    groups = {id: group for id, (_, group, _) in read(tmp_path / "data", "images", "train").items()}
    assert [groups[id] for id in ("a/x", "a/0", "a/y", "a/1", "b/z", "b/w")] == ["p1", "p1", "p2", "p2", "train/b/w", "train/b/w"]
    assert summary["splits"]["train"]["constant"] == 4
    rows = table(tmp_path / "data", "images", "duplicates.csv")
    assert [(row["kind"], row["id"], row["other_id"]) for row in rows] == [
        ("constant", id, "") for id in ("a/x", "a/y", "b/w", "b/z")
    ]
    captured = capsys.readouterr()
    assert "constant images, which have no content and are compared with none: 4\n" in captured.out
    assert "another label" not in captured.err


def test_only_blank_images(tmp_path):
    for name in "ab":
        save(tmp_path / "i" / name / "0.png", np.zeros((16, 16), np.uint8))
    assert packing.pack("images", tmp_path / "data", tmp_path / "i")["splits"]["train"]["constant"] == 2


def test_patients_are_compared_without_blanks_and_in_one_unicode_form(tmp_path, capsys):
    root = classes(tmp_path / "i")
    names = ["P\u00e9", "Pe\u0301 ", "\u00a0P\u00e9\t"]
    rows = [(f"a/{i}" if i else "a/0 ", name) for i, name in enumerate(names)]
    with (tmp_path / "g.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("ID", " Group "), *rows, ("b/0", "1"), ("b/1", "1.0"), ("", "")])
    summary = packing.pack("images", tmp_path / "data", root, groups=tmp_path / "g.csv")
    groups = {id: group for id, (_, group, _) in read(tmp_path / "data", "images", "train").items()}
    assert {groups[f"a/{i}"] for i in range(3)} == {"P\u00e9"} and (groups["b/0"], groups["b/1"]) == ("1", "1.0")
    assert summary["splits"]["train"]["groups"] == 4
    captured = capsys.readouterr()
    assert f"warning: {tmp_path}/g.csv: '1' and '1.0' look like one patient" in captured.err
    assert "groups (patients)" in captured.out


def test_ids_of_a_table_are_compared_in_one_unicode_form(tmp_path):
    composed, decomposed = "m\u00fcller", "mu\u0308ller"
    for stored, written in ((decomposed, composed), (composed, decomposed)):
        root = classes(tmp_path / f"i{len(stored)}")
        save(root / "a" / f"{stored}.png")
        groups = tmp_path / f"{len(stored)}.csv"
        groups.write_text(f"id,group\na/{written},p\n", encoding="utf-8")
        data = tmp_path / f"d{len(stored)}"
        summary = packing.pack("images", data, root, groups=groups)
        assert read(data, "images", "train")[f"a/{stored}"][1] == "p" and summary["unmatched_ids"] == 0
    save(root / "a" / f"{decomposed}.png")
    packing.pack("images", tmp_path / "both", root, max_rejected=0.5)
    (row,) = table(tmp_path / "both", "images", "rejected.csv")
    assert row["reason"].endswith("but for case, extension, blanks or Unicode form: rename one")


def test_a_table_of_groups_that_names_no_image_is_refused(tmp_path):
    subtask1(tmp_path)
    groups = tmp_path / "g.csv"
    groups.write_text("split,id,group\ntrain,real_used/0,p\n")
    place = ("subtask1", tmp_path / "data", tmp_path / "train", tmp_path / "test")
    what = "its first is 'train real_used/0', that of an image 'train_real real_used/0'"
    with pytest.raises(ValueError, match=f"^{groups}: none of its ids is that of an image: {what}$"):
        packing.pack(*place, groups=groups)
    groups.write_text("id,group\n")
    with pytest.raises(ValueError, match=f"^{groups}: no ids in it, expected lines of id,group"):
        packing.pack(*place, groups=groups)
    assert not (tmp_path / "data").exists()
    groups.write_text("id,group\nreal_used/0.PNG,p\nreal_used/1,p\nreal_used/7,p\n")
    summary = packing.pack(*place, groups=groups)
    assert summary["unmatched_ids"] == 1
    assert summary["splits"]["train_real"]["groups"] == 3 and summary["splits"]["train_real"]["without_patient"] == 2


def deep(root, most, shift=0):
    """Two classes of 16-bit images whose largest value is `most`."""
    for name in "ab":
        for i in range(3):
            pixels = RNG.integers(0, most - shift, (16, 16)) + shift
            pixels[0, :2] = shift, most
            save(root / name / f"{i}.png", pixels.astype(np.uint16))
    return root


@pytest.mark.parametrize("bits", [8, 10, 12, 13, 14, 15])
def test_sixteen_bit_files_that_hold_fewer_bits(tmp_path, bits, capsys):
    most = 2**bits - 1
    root = deep(tmp_path / "i", most)
    summary = packing.pack("images", tmp_path / "d1", root)
    err = capsys.readouterr().err
    assert err.count("16-bit images go from ") == 2 and f" to {most}, of 65535: " in err and f"give --bits={bits}, or more" in err
    packing.pack("images", tmp_path / "strict", root, strict=True)  # which is about files that are rejected
    assert capsys.readouterr().err.count(f" to {most}, of 65535: ") >= 1
    given = packing.pack("images", tmp_path / "d2", root, strict=True, bits=bits)
    assert summary["bits"] == 0 and given["bits"] == bits and capsys.readouterr().err.count("warning") == 0
    for id, (_, _, pixels) in read(tmp_path / "d2", "images", "train").items():
        with Image.open(root / f"{id}.png") as image:
            np.testing.assert_array_equal(pixels[..., 0], np.rint(np.asarray(image) * (255 / most)))
    with pytest.raises(ValueError, match=f"no image in {root}/a"):
        packing.pack("images", tmp_path / "d3", deep(root, most + 1), bits=bits)


def test_sixteen_bit_files_that_use_the_range_and_those_that_are_shifted(tmp_path, capsys):
    packing.pack("images", tmp_path / "d1", deep(tmp_path / "i1", 65535), strict=True)
    assert "warning" not in capsys.readouterr().err
    packing.pack("images", tmp_path / "d2", deep(tmp_path / "i2", 36000, shift=32000))
    assert "to 36000, of 65535: 16 of 256 grey levels are left; rescale them; --bits=16 takes" in capsys.readouterr().err
    packing.pack("images", tmp_path / "d3", tmp_path / "i2", strict=True, bits=16)
    assert "warning" not in capsys.readouterr().err


def test_the_whole_folder_decides_about_the_bits(tmp_path, capsys):
    root = deep(tmp_path / "i", 65535)
    save(root / "a" / "dark.png", RNG.integers(0, 4096, (16, 16)).astype(np.uint16))
    packing.pack("images", tmp_path / "data", root, strict=True)
    assert "warning" not in capsys.readouterr().err


def test_a_folder_that_loses_more_than_a_twentieth_is_refused(tmp_path, capsys):
    root = classes(tmp_path / "i", count=19)
    save(root / "a" / "one.png", np.zeros((16, 20), np.uint8))
    assert packing.pack("images", tmp_path / "d1", root)["rejected"] == 1  # 1 of 20
    for i in range(3):
        save(root / "a" / f"x{i}.png", np.zeros((9, 8 + i // 2), np.uint8))
    capsys.readouterr()
    what = rf"^rejected: 4 of 23 images in {root}/a: more than 0.05 of a folder \(--max_rejected\)"
    with pytest.raises(ValueError, match=what):
        packing.pack("images", tmp_path / "d2", root)
    assert not (tmp_path / "d2").exists()
    err = capsys.readouterr().err
    assert "rejected: 4 images of other sizes than 16x16: 2 x 8x9, 1 x 20x16, 1 x 9x9; --image_size=N resizes all" in err
    assert packing.pack("images", tmp_path / "d2", root, max_rejected=0.2)["rejected"] == 4
    with pytest.raises(ValueError, match="more than 0 of a folder"):
        packing.pack("images", tmp_path / "d3", root, max_rejected=0)


def test_files_that_are_no_images_are_listed_but_not_counted(tmp_path):
    root = classes(tmp_path / "i")
    for name in ("Thumbs.db", "labels.csv", "notes.txt", ".DS_Store", "README"):
        (root / "a" / name).write_bytes(b"BMI and other things")
    assert packing.pack("images", tmp_path / "d1", root, max_rejected=0)["rejected"] == 4
    for name, content in (("1.bmp", encode(grey(), "BMP")), ("scan", GOOD), ("2.tif", encode(grey(), "TIFF"))):
        (root / "b" / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^rejected: 3 of 6 images in {root}/b: more than"):
        packing.pack("images", tmp_path / "d2", root)
    packing.pack("images", tmp_path / "d2", root, max_rejected=1)
    reasons = {row["file"].rpartition("/")[2]: row["reason"] for row in table(tmp_path / "d2", "images", "rejected.csv")}
    assert reasons["1.bmp"] == "not named .png, .jpg or .jpeg: a BMP inside" and reasons["notes.txt"] == images.NOT_NAMED


def test_images_beside_the_class_folders_are_a_share_of_all(tmp_path):
    root = classes(tmp_path / "i", count=30)
    save(root / "stray.png")
    assert packing.pack("images", tmp_path / "d1", root)["rejected"] == 1
    for i in range(9):
        save(root / f"{i}.png")
    with pytest.raises(ValueError, match=f"^rejected: 10 of 70 images in {root}: more than"):
        packing.pack("images", tmp_path / "d2", root)


def test_tables_hold_no_formulas_and_one_line_a_row(tmp_path):
    rows = [("=cmd|x", -1), ("a\nb\udc80", 0.5), ('q"uote, comma', "-x;=y;\uff20")]
    packing._csv(tmp_path / "t.csv", ["a", "b"], rows)
    written = (tmp_path / "t.csv").read_text(encoding="utf-8")
    assert written == "a,b\n'=cmd|x,-1\na\\nb\\udc80,0.5\n\"q\"\"uote, comma\",'-x;'=y;'\uff20\n"


def test_the_binary_packs_and_its_errors_are_one_line(tmp_path, capsys):
    for name in ("generated", "u", "real_not_used"):
        save(tmp_path / name / "0.png")
    place = {"task": "subtask1", "train_dir": tmp_path, "data_dir": tmp_path / "data"}
    with pytest.raises(ValueError, match=f"^missing folders .1.: {tmp_path}/real_used "):
        run(**place)
    with pytest.raises(ValueError, match="^--map=real_used: expected NAME=DIR"):
        run(**place, map="real_used")
    (tmp_path / "u" / "x\ny\udcff.png").write_bytes(b"")
    with pytest.raises(ValueError) as error:
        run(**place, map=f"real_used={tmp_path}/u", strict=True)
    assert str(error.value).count("\n") == 0 and "x\\ny\\udcff.png: the name holds" in str(error.value)
    capsys.readouterr()
    run(**place, map=f"real_used={tmp_path}/u", image_size=8, max_rejected=0.5)
    assert capsys.readouterr().out.endswith(f"packed: {tmp_path}/data/fingerprint/subtask1/1.0.0\n")
    assert read(tmp_path / "data", "subtask1", "train_real")["real_used/0"][2].shape == (8, 8, 1)


@pytest.mark.skipif("FINGERPRINT_DATA" not in os.environ, reason="FINGERPRINT_DATA names no folder with the real images")
def test_real_images(tmp_path):
    root = os.path.join(os.environ["FINGERPRINT_DATA"], "thorax256")
    summary = packing.pack("images", tmp_path, root, labels=f"{root}/classes.csv", groups=f"{root}/groups.csv", strict=True)
    assert summary["image_shape"] == [256, 256, 1]
    assert summary["splits"]["train"]["classes"] == {"benign": 120, "malignant": 561, "normal": 416}
    with open(f"{root}/groups.csv", newline="") as file:
        groups = {row["id"]: row["group"] for row in csv.DictReader(file)}
    records = read(tmp_path, "images", "train")
    assert {id: group for id, (_, group, _) in records.items()} == groups
    with Image.open(f"{root}/slice_0001.png") as image:
        buffer = io.BytesIO()
        image.save(buffer, "PPM")
    assert buffer.getvalue().endswith(records["slice_0001"][2].tobytes())


def test_a_folder_that_is_a_link_is_not_followed(tmp_path):
    """Whoever handed over the folders may have put one there; what the command line names may be one."""
    subtask1(tmp_path)
    mine = tmp_path / "train" / "real_used"
    mine.rename(tmp_path / "mine")
    mine.symlink_to(tmp_path / "mine")
    place = ["--task=subtask1", f"--train_dir={tmp_path}/train"]
    with pytest.raises(ValueError, match=r"train/real_used is a link that leaves \S+/train, .*give --map real_used=DIR$"):
        packed(tmp_path / "data", *place)
    packed(tmp_path / "data", *place, "--map", f"real_used={tmp_path}/train/real_used")
    (tmp_path / "classes").mkdir()
    (classes(tmp_path / "others") / "b").rename(tmp_path / "b")
    for name in "ab":
        (tmp_path / "classes" / name).symlink_to(tmp_path / name if name == "b" else tmp_path / "others" / "a")
    with pytest.raises(ValueError, match=r"classes/a is a link that leaves \S+/classes, and is not followed$"):
        packed(tmp_path / "data", "--task=images", f"--train_dir={tmp_path}/classes")
    packed(tmp_path / "data", "--task=images", f"--train_dir={tmp_path}/others", f"--test_dir={tmp_path}/others")


@pytest.mark.parametrize("name", ["fingerprint", "fingerprint/images"])
def test_nothing_is_packed_through_a_link(name, tmp_path):
    root = classes(tmp_path / "i")
    packed(tmp_path / "keep", "--task=images", f"--train_dir={root}")
    before = {path: path.read_bytes() for path in (tmp_path / "keep").rglob("*") if path.is_file()}
    (tmp_path / "data" / name).parent.mkdir(parents=True)
    (tmp_path / "data" / name).symlink_to(tmp_path / "keep" / name)
    for given in ([], ["--overwrite"]):
        with pytest.raises(ValueError, match=f"data/{name} is a link, and nothing is written through one: give another --data_dir"):
            packed(tmp_path / "data", "--task=images", f"--train_dir={root}", *given)
    assert {path: path.read_bytes() for path in (tmp_path / "keep").rglob("*") if path.is_file()} == before


def test_a_folder_that_is_named_twice_is_refused(tmp_path):
    subtask1(tmp_path)
    place = ["--task=subtask1", f"--train_dir={tmp_path}/train"]
    twice = [flag for name in ("train", "test") for flag in ("--map", f"generated={tmp_path}/{name}/generated")]
    with pytest.raises(ValueError, match="--map names generated twice: give one folder of each name"):
        packed(tmp_path / "data", *place, *twice)
