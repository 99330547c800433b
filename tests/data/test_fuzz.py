"""Damaged files of every kind: each is used whole or refused with one line. FINGERPRINT_FAULTS=full: 20 times the examples."""

import csv
import hashlib
import io
import json
import os
import struct
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from fingerprint_jax.data import builder, folders, images, packing, tables
from fingerprint_jax.data.source import Source
from fingerprint_jax.runtime.names import printable
from tests.conftest import FULL_FAULTS
from tests.data.test_images import chunk, encode

MAX_PIXELS = 4096
GREY = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def fuzz(examples):
    return settings(
        max_examples=examples * (20 if FULL_FAULTS else 1),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    def peak():
        return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024

    before = peak()
    yield
    assert peak() - before < 512


def seeds():
    """Sound files of all kinds: {name: (bytes, extension)}."""
    grey, colour = Image.fromarray(GREY), Image.fromarray(COLOUR)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "scan", 72.0
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 99, zip=True)
    text.add_itxt("c", "d" * 99, zip=True)
    kinds = {
        "L": (grey, {}),
        "P": (colour.quantize(16), {}),
        "clear": (colour.quantize(16), {"transparency": bytes(range(16))}),
        "LA": (grey.convert("LA"), {"exif": exif}),
        "RGB": (colour, {"icc_profile": bytes(99), "pnginfo": text, "dpi": (72, 72)}),
        "RGBA": (colour.convert("RGBA"), {}),
        "1": (grey.convert("1"), {}),
        "I;16": (Image.fromarray(GREY.astype(np.uint16) * 257), {"transparency": 5}),
        "moving": (grey, {"save_all": True, "append_images": [grey.rotate(180)]}),
    }
    found = {name: (encode(image, "PNG", **options), ".png") for name, (image, options) in kinds.items()}
    kinds = {
        "grey": (grey, {"comment": b"x"}),
        "colour": (colour, {"exif": exif, "icc_profile": bytes(99), "dpi": (72, 72)}),
        "progressive": (colour, {"progressive": True}),
        "CMYK": (colour.convert("CMYK"), {}),
    }
    found |= {name: (encode(image, "JPEG", **options), ".jpg") for name, (image, options) in kinds.items()}
    found["MPO"] = encode(grey, "MPO", save_all=True, append_images=[grey]), ".jpg"
    return found


SEEDS = seeds()
SPAN = st.binary(max_size=40)
WILD = st.sampled_from([0, 1, 2, 3, 7, 8, 9, 255, 256, 4095, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1])
PNG_NAMES = [b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"cHRM"]
PNG_NAMES += [b"sRGB", b"pHYs", b"sBIT", b"bKGD", b"IDAT", b"IEND", b"ABCD", b"\0\n\xff="]
TIFF_TYPES = st.integers(0, 14)


@st.composite
def exif_data(draw):
    """A TIFF header with entries of any tag, type, count and offset; the orientation more often than others."""
    order = draw(st.sampled_from("<>"))
    entry = st.tuples(st.sampled_from([0x0112, 0x0112, 0x011A, 0x0128, 0x8769, 0x8825, 0x927C, 0xA005, 0xB002]), TIFF_TYPES, WILD)
    entries = draw(st.lists(st.tuples(entry, st.binary(min_size=4, max_size=4)), max_size=4))
    first = draw(st.sampled_from([8, 8, 8, 0, 9, 2**32 - 1]))
    data = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", first, len(entries))
    for (tag, kind, count), value in entries:
        data += struct.pack(f"{order}HHI", tag, kind, count) + value
    return data + draw(SPAN)


def chunks(data):
    """PNG -> [[name, data]]."""
    found, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + length]])
        at += length + 12
    return found


def segments(data):
    """JPEG -> [[marker, data]], the pixels belong to the last."""
    found, at = [], 2
    while data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        found.append([data[at : at + 2], data[at + 4 : at + 2 + length]])
        at += length + 2
    return [*found, [data[at : at + 2], data[at + 4 :]]]


HEADS = [
    b"JFIF\0\1\1",
    b"Adobe\0d\0\0\0\0\2",
    b"MPF\0",
    b"ICC_PROFILE\0\1\1",
    b"Photoshop 3.0\0",
    b"http://ns.adobe.com/xap/1.0/\0",
]
HEADS += [b"", b"Exif\0\0", b"k\0\0", b"k\0\1\0\0\0", b"XML:com.adobe.xmp\0\0\0\0\0"]
BODIES = SPAN | exif_data() | st.binary(max_size=9).map(lambda s: zlib.compress(s * 300_000))
BODIES |= st.sampled_from([b'<x tiff:Orientation="6">', b"<tiff:Orientation>8</tiff:Orientation>"])
BODIES |= st.lists(WILD, max_size=7).map(lambda numbers: struct.pack(f">{len(numbers)}I", *numbers))
PARTS = st.tuples(st.sampled_from(HEADS), BODIES).map(b"".join)  # what may stand in a chunk or segment


def patch(draw, data):
    """A few bytes replaced, a span lost or inserted, or the end cut off."""
    at = draw(st.integers(0, len(data)))
    span = draw(SPAN)
    kind = draw(st.sampled_from(["replace", "flip", "insert", "delete", "cut"]))
    if kind == "flip" and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
    keep = {"replace": len(span), "insert": 0, "delete": draw(st.integers(0, len(data))), "cut": len(data), "flip": 0}[kind]
    return data[:at] + (span if kind in ("replace", "insert") else b"") + data[at + keep :]


@st.composite
def damaged(draw):
    """A file that was sound: (bytes, extension)."""
    data, extension = SEEDS[draw(st.sampled_from(sorted(SEEDS)))]
    if draw(st.booleans()):  # within its grammar, checksums right
        parts = (chunks if extension == ".png" else segments)(data)
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, len(parts) - 1))
            kind = draw(st.sampled_from(["header", "patch", "insert", "insert", "replace", "delete", "repeat"]))
            if kind == "header":
                if extension == ".png":
                    wild = st.integers(0, 20) | WILD
                    size = [draw(wild), draw(wild)]
                    rest = [draw(st.sampled_from([0, 1, 2, 3, 4, 6, 7, 8, 16, 32, 255])) for _ in range(5)]
                    parts[0][1] = struct.pack(">IIBBBBB", *size, *rest)
                else:
                    frame = next((part for part in parts if part[0][1] in (0xC0, 0xC2)), parts[0])
                    frame[1] = frame[1][:1] + struct.pack(">HH", *(draw(st.integers(0, 65535)) for _ in "hw")) + frame[1][5:]
            elif kind == "patch":
                parts[at][1] = patch(draw, parts[at][1])
            elif kind == "delete" and len(parts) > 1:
                del parts[at]
            elif kind == "repeat":
                parts[at:at] = [list(parts[at])] * draw(st.sampled_from([1, 2, 200]))
            else:
                name = draw(st.sampled_from(PNG_NAMES)) if extension == ".png" else bytes([255, draw(st.integers(0xC0, 0xFE))])
                parts[at : at + (kind == "replace")] = [[name, draw(PARTS)]]
        if extension == ".png":
            data = data[:8]
            for name, body in parts:
                length = draw(WILD) if draw(st.integers(0, 60)) == 60 else len(body)
                data += struct.pack(">I", length) + chunk(name, body)[4:]
        else:
            data = b"\xff\xd8"
            for name, body in parts:
                length = draw(WILD) if draw(st.integers(0, 60)) == 60 else len(body) + 2
                if name == b"\xff\xda":  # its length is that of its header
                    length = 4 + 2 * body[:1].ljust(1, b"\0")[0] + 2
                data += name + struct.pack(">H", length & 65535) + body
        rough = st.sampled_from([0, 0, 0, 1])
    else:
        rough = st.integers(1, 2)
    for _ in range(draw(rough)):
        data = patch(draw, data)
    return data, extension


NOISE = st.tuples(st.binary(max_size=200), st.sampled_from([".png", ".jpg"]))
FILES = st.integers(0, 15).flatmap(lambda n: damaged() if n else NOISE)


def one_line(text):
    assert text and text.isprintable(), text


def try_decode(path, **options):
    """Pixels, or nothing where the file is refused. The warnings of Pillow's own modules are those that `pack` silences."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            pixels, info = images.decode(path, max_pixels=MAX_PIXELS, **options)
        except ValueError as error:
            assert type(error) is ValueError
            one_line(str(error))
            return None
        finally:
            assert {Path(w.filename).parent for w in caught} <= {Path(PIL.__file__).parent}, [str(w.message) for w in caught]
    assert pixels.dtype == np.uint8 and pixels.ndim == 2 and 0 < pixels.size <= MAX_PIXELS
    assert info.bytes == path.stat().st_size and info.mode and info.metadata_bytes >= 0
    return pixels


@fuzz(300)
@given(FILES, st.sampled_from([0, 0, 8]))
def test_decode_returns_pixels_or_a_reason(file, image_size):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a{file[1]}")
        path.write_bytes(file[0])
        pixels = try_decode(path, image_size=image_size)
        assert pixels is None or not image_size or pixels.shape == (8, 8)


CELLS = st.sampled_from(
    ["id", "label", "class", "group", "split", "train", "a/0", "b/1.png", "0", "1", "t2", "gen_t1", "-1", "=1+1", "1e99", "nan"]
)
CELLS |= st.text(max_size=6) | st.sampled_from(["", '"', "a\0", "a\n", "\ufeff", "x" * 140_000])
ROWS = st.lists(st.lists(CELLS, max_size=4), max_size=6)


@st.composite
def csvs(draw):
    """Bytes of a table, often with a sound header, in some encoding; or any bytes."""
    if draw(st.integers(0, 9)) == 9:
        return draw(st.binary(max_size=99))
    header = draw(
        st.sampled_from([[], [["id", "group"]], [["id", "label"]], [["split", "id", "group"]], [["id", "score_0", "score_1"]]])
    )
    width = draw(st.sampled_from([0, 2, 3]))  # of every row, or any
    rows = header + (draw(st.lists(st.lists(CELLS, min_size=width, max_size=width), max_size=6)) if width else draw(ROWS))
    text = io.StringIO()
    if draw(st.booleans()):
        csv.writer(text, lineterminator=draw(st.sampled_from(["\n", "\r\n", "\r"]))).writerows(rows)
    else:
        text.write(
            draw(st.sampled_from(["\n", "\n\n", "\r"])).join(draw(st.sampled_from([",", ";", "\t"])).join(row) for row in rows)
        )
    return text.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])), "replace")


def or_reason(read, path, *arguments):
    """What a reader returns; nothing where it refuses the file with one line that names it."""
    try:
        return read(path, *arguments)
    except ValueError as error:
        assert str(path) in str(error)
        one_line(str(error))
        assert len(str(error)) < 1000
        return None


@fuzz(150)
@given(csvs())
def test_tables_are_read_or_refused_with_a_reason(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.csv")
        path.write_bytes(data)
        for names in (("group",), ("label", "class")):
            values = or_reason(folders.read_column, str(path), names)
            assert values is None or all(value and not folders.unfit(value) for value in values.values())
        splits = or_reason(folders.read_files, path)
        assert splits is None or all([type(cell) for cell in row] == [str, int, str] for rows in splits.values() for row in rows)
        found = or_reason(tables.read_labels, path, 5, "subtask2")
        if found:
            ids, labels = found
            assert 0 < len(ids) == len(labels) == len(set(ids.tolist())) and "" not in ids
            assert set(labels.tolist()) <= set(range(5))
        extra = or_reason(tables.read_extra_labels, path, 5, "subtask2")
        assert extra is None or all(rows and set(rows.values()) <= set(range(5)) for rows in extra.values())


@fuzz(100)
@given(csvs(), st.none() | st.binary(max_size=40).map(b"{".__add__) | st.sampled_from([b"", b"[]", b'{"sha256": 1}']))
def test_predictions_are_read_or_refused_with_a_reason(data, description):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.csv")
        path.write_bytes(data)
        if description is None:  # that of this table
            description = json.dumps({"sha256": hashlib.sha256(data).hexdigest()}).encode()
        Path(folder, "t.csv.json").write_bytes(description)
        found = or_reason(tables.read_predictions, path)
        if found:
            ids, scores, meta = found
            assert scores.dtype == np.float32 and scores.ndim == 2 and len(ids) == len(scores) and isinstance(meta, dict)


NAMES = st.binary(min_size=1, max_size=200).map(lambda s: s.translate(None, b"/\0")) | st.sampled_from(
    [
        b"a.png",
        b"A.PNG",
        b"a.jpg",
        b".png",
        b"a.png\n",
        b"=a.png",
        b"a..png",
        b"<img onerror=x>.png",
        b"\xed\xa0\x80.png",
        b" .png",
        b"x\r.png",
    ]
)


@fuzz(40)
@given(st.lists(NAMES.filter(lambda name: name.strip(b".")), max_size=8), st.sampled_from(["", "t1/"]))
def test_any_file_name_is_an_id_or_refused(names, prefix):
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            Path(folder, os.fsdecode(name)).write_bytes(b"x")
        files, rejected = folders.scan(folders.Folder("x", Path(folder), "train", 0, prefix), set())
        seen = sorted([os.fsencode(file.path.name) for file in files] + [os.fsencode(Path(path).name) for path, _ in rejected])
        assert seen == sorted({name for name in names if not name.startswith(b".")})
        for file in files:
            assert file.id.startswith(prefix) and not folders.unfit(file.id)
            file.id.encode()
        for _, reason in rejected:
            one_line(reason)
        packing._csv(Path(folder, "t.csv"), ["file", "reason"], rejected)
        lines = Path(folder, "t.csv").read_text(encoding="utf-8").splitlines()
        assert len(lines) == len(rejected) + 1 and all(map(str.isprintable, lines))


@fuzz(12)
@given(st.lists(st.tuples(st.sampled_from("ab"), NAMES, FILES), max_size=6), st.sampled_from([0, 8]), st.none() | csvs())
def test_a_pack_is_whole_or_not_there(extra, image_size, groups):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # as the binary does
        root, data = Path(folder, "images"), Path(folder, "data")
        for name in "ab":
            (root / name).mkdir(parents=True)
            (root / name / "good.png").write_bytes(SEEDS["L"][0])
        for label, name, (content, extension) in extra:
            stem = os.fsdecode(name).removesuffix(".png").lstrip(".") or "x"
            (root / label / f"{stem}{extension}").write_bytes(content)
        table = Path(folder, "groups.csv")
        if groups is not None:
            table.write_bytes(groups)
        try:
            arguments = {
                "image_size": image_size,
                "max_pixels": MAX_PIXELS,
                "max_rejected": 1,
                "groups": "" if groups is None else table,
            }
            summary = packing.pack("images", data, root, **arguments)
        except ValueError as error:
            one_line(printable(str(error)))
            assert not data.exists()
            return
        made = builder.dataset_dir(data, "images")
        source = Source(str(data), "images")
        rows = source.rows("train")
        with open(made / "rejected.csv", newline="", encoding="utf-8") as file:
            rejected = list(csv.DictReader(file))
        files = sum(len(names) for _, _, names in os.walk(root))
        assert files == len(rows) + len(rejected) == summary["splits"]["train"]["count"] + summary["rejected"]
        expected = list(zip(rows.ids.tolist(), rows.labels.tolist(), rows.groups.tolist(), strict=True))
        assert folders.read_files(made / "files.csv") == {"train": expected}
        assert source.images(rows.index).shape == (len(rows), *summary["image_shape"])
        assert os.listdir(made.parent) == ["1.0.0"]
