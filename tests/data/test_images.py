import functools
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from fingerprint_jax.data import images

GREY = np.random.default_rng(0).integers(0, 256, (7, 5), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (7, 5, 3), dtype=np.uint8)


def encode(image, format="PNG", **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decode(tmp_path, data: bytes, name="a.png", **options):
    path = tmp_path / name
    path.write_bytes(data)
    return images.decode(path, **options)


def refusal(tmp_path, data: bytes, name="a.png", **options) -> str:
    with pytest.raises(ValueError) as error:
        decode(tmp_path, data, name, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def luma(rgb):  # ITU-R 601-2, to within the rounding of fixed-point arithmetic
    return rgb.astype(float) @ [0.299, 0.587, 0.114]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_grey_comes_back_unchanged_with_what_the_file_says(tmp_path):
    data = encode(GREY)
    pixels, info = decode(tmp_path, data)
    np.testing.assert_array_equal(pixels, GREY)
    assert pixels.dtype == np.uint8
    assert info == images.Info(bytes=len(data), mode="L", metadata_bytes=0)


def test_metadata_counts_text_but_not_transparency(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Software", "scanner 7")
    palette = Image.fromarray(GREY).convert("P")
    assert decode(tmp_path, encode(palette, pnginfo=text, transparency=bytes(range(255))))[1].metadata_bytes == len("scanner 7")


def test_colour_and_palette_become_luma(tmp_path):
    rgb = Image.fromarray(COLOUR)
    assert abs(decode(tmp_path, encode(rgb))[0] - luma(COLOUR)).max() <= 0.51
    palette = rgb.quantize(16)
    pixels, info = decode(tmp_path, encode(palette))
    assert info.mode == "P"
    assert abs(pixels - luma(np.asarray(palette.convert("RGB")))).max() <= 0.51
    grey_palette = Image.fromarray(GREY).convert("P")  # the kind of the official images: exact
    np.testing.assert_array_equal(decode(tmp_path, encode(grey_palette))[0], GREY)


def test_cmyk_without_black_is_the_complement(tmp_path):
    flat = np.broadcast_to(np.array([30, 60, 90], np.uint8), (8, 8, 3))
    cmyk = Image.fromarray(np.dstack([255 - flat, np.zeros((8, 8), np.uint8)]), "CMYK")
    pixels, info = decode(tmp_path, encode(cmyk, "JPEG", quality=100), "a.jpg")
    assert info.mode == "CMYK"
    assert abs(pixels - luma(flat)).max() <= 3  # JPEG


def test_one_bit_is_black_and_white(tmp_path):
    bits = GREY > 127
    pixels, info = decode(tmp_path, encode(Image.fromarray(bits)))
    assert info.mode == "1"
    np.testing.assert_array_equal(pixels, bits * np.uint8(255))


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    values = np.array([[0, 128, 129, 256, 1000], [32767, 32768, 65278, 65406, 65535]], np.uint16)
    pixels, info = decode(tmp_path, encode(Image.fromarray(values)))
    assert info.mode == "I;16"
    np.testing.assert_array_equal(pixels, np.rint(values * (255 / 65535)))


def test_varying_alpha_is_composited_over_black_and_constant_alpha_dropped(tmp_path):
    alpha = np.full_like(GREY, 255)
    alpha[:3] = 0
    varying = Image.fromarray(np.dstack([GREY, alpha]), "LA")
    np.testing.assert_array_equal(decode(tmp_path, encode(varying))[0], np.where(alpha, GREY, 0))
    for constant in (0, 100, 255):
        rgba = np.dstack([GREY, GREY, GREY, np.full_like(GREY, constant)])
        np.testing.assert_array_equal(decode(tmp_path, encode(rgba))[0], GREY)
    palette = Image.fromarray(GREY).convert("P")
    transparent = decode(tmp_path, encode(palette, transparency=int(GREY[0, 0])))[0]
    np.testing.assert_array_equal(transparent, np.where(GREY[0, 0] == GREY, 0, GREY))


@pytest.mark.parametrize("format, name", [("PNG", "a.png"), ("JPEG", "a.JPG")])
def test_exif_orientation_is_applied(tmp_path, format, name):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    half = np.zeros((8, 16), np.uint8)
    half[:, 8:] = 255  # bright on the right as stored: at the bottom as shown
    pixels, info = decode(tmp_path, encode(half, format, exif=exif), name)
    assert pixels.shape == (16, 8)
    assert pixels[:7].max() < 20 and pixels[9:].min() > 235
    assert info.metadata_bytes > 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_turns_as_pillow_does(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(GREY, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode(tmp_path, data)[0], expected)
    profile = f"k\nexif\n{len(exif.tobytes())}\n{exif.tobytes().hex()}\n".encode()  # as ImageMagick writes it
    text = chunk(b"tEXt", b"Raw profile type exif\0" + profile)
    np.testing.assert_array_equal(decode(tmp_path, data[:33] + text + encode(GREY)[33:])[0], expected)


def test_what_else_exif_holds_is_not_looked_at(tmp_path):
    entries = [(0x0112, 3, 1, struct.pack("<HH", 8, 0)), (0x010E, 12, 3, struct.pack("<I", 20))]  # the description is of doubles
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    exif += b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries) + bytes(40)
    assert decode(tmp_path, encode(GREY, "JPEG", exif=exif), "a.jpg")[0].shape == (5, 7)


def directory(order: str, entries: int, size: int) -> bytes:
    """EXIF data whose entries all name all of its bytes, of so many bytes."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, entries)
    return (head + b"".join(struct.pack(f"{order}HHII", 1000 + i, 7, size, 0) for i in range(entries))).ljust(size, b"\0")


@pytest.mark.parametrize("order", "<>")
def test_exif_whose_entries_name_the_same_bytes_is_refused(tmp_path, order):
    few, many = directory(order, 20, 2**16 - 50), directory(order, 501, 2**16 - 50)
    said = "EXIF of 501 entries, a file made to waste memory"
    head, rest = JPEG[:2], JPEG[2:]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        assert decode(tmp_path, png(1, 1, chunk(b"eXIf", few), PIXEL))[0].shape == (1, 1)
        assert decode(tmp_path, head + segment(0xE1, b"Exif\0\0" + few) + rest, "a.jpg")[0].shape == (7, 5)
    assert refusal(tmp_path, png(1, 1, chunk(b"eXIf", many), PIXEL)) == said
    profile = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n\n" + many.hex().encode())
    assert refusal(tmp_path, png(1, 1, chunk(b"zTXt", profile), PIXEL)) == said
    for between in (b"", b"\0\xff\0\xff\xff", b"\xff\xd0", segment(0xE1, b"Exif\0\0" + many[:99])):
        left = many[99:] if len(between) > 99 else many
        assert refusal(tmp_path, head + between + segment(0xE1, b"Exif\0\0" + left) + rest, "a.jpg") == said
    for marker in (b"\xff\xd8", b"\xff\xd9", b"\xff\xc8", b"\xff\xf0"):  # Pillow reads on behind it
        hidden = head + marker + segment(0xE1, b"Exif\0\0" + many) + rest
        assert refusal(tmp_path, hidden, "a.jpg") == f"damaged: marker {marker.hex()} before any scan"
    index = segment(0xE2, b"MPF\0" + directory(order, 17, 2**16 - 50))
    assert refusal(tmp_path, head + index + rest, "a.jpg") == "MP index of 17 entries, a file made to waste memory"
    assert refusal(tmp_path, png(1, 1, chunk(b"eXIf", directory(order, 1, 2**20 + 1)), PIXEL)).startswith("EXIF of 1048577 bytes")
    assert decode(tmp_path, png(1, 1, chunk(b"eXIf", directory(order, 1, 2**17)), PIXEL))[0].shape == (1, 1)
    assert refusal(tmp_path, png(1, 1, chunk(b"eXIf", directory(order, 257, 2**17)), PIXEL)).startswith("EXIF of 257 entries")
    long = segment(0xE1, b"Exif\0\0" + bytes(2**15)) * 33
    assert refusal(tmp_path, head + long + rest, "a.jpg") == "EXIF of 1081344 bytes, at most 1048576 are read"


def test_resize_only_when_asked_and_averages(tmp_path):
    blocks = np.kron(np.array([[10, 200], [90, 40]], np.uint8), np.ones((8, 8), np.uint8))
    assert decode(tmp_path, encode(blocks))[0].shape == (16, 16)
    checker = (np.indices((16, 16)).sum(axis=0) % 2 * 200).astype(np.uint8)
    small = decode(tmp_path, encode(checker), image_size=4)[0]
    assert small.shape == (4, 4)
    np.testing.assert_allclose(small, 100, atol=8)  # antialiased: neither 0 nor 200
    np.testing.assert_array_equal(decode(tmp_path, encode(blocks), image_size=16)[0], blocks)


def test_wrong_format_under_the_name(tmp_path):
    assert refusal(tmp_path, encode(GREY, "JPEG")) == "a JPEG under a .png name"
    assert refusal(tmp_path, encode(GREY), "a.jpeg") == "a PNG under a .jpeg name"
    for other in ("GIF", "TIFF", "BMP"):
        assert refusal(tmp_path, encode(GREY, other)).startswith("neither a PNG nor a JPEG")
    floats = np.full((7, 5), np.nan, np.float32)  # only a TIFF can hold them
    assert refusal(tmp_path, encode(floats, "TIFF")).startswith("neither a PNG nor a JPEG")
    assert refusal(tmp_path, b"id,label\n1,2\n").startswith("neither a PNG nor a JPEG")
    assert refusal(tmp_path, encode(GREY), "a.tif").startswith("not named .png")
    assert refusal(tmp_path, b"") == "empty file"
    for name in ("pipe.png", "pipe.txt"):  # nobody writes to it
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match=r"^a pipe, expected a file$|^not named .png"):
            images.decode(tmp_path / name)


def test_every_truncation_is_refused(tmp_path):
    png, jpeg = encode(GREY), encode(COLOUR, "JPEG")
    for length in range(1, len(png) - 4):  # without the checksum of the empty last chunk nothing is lost
        refusal(tmp_path, png[:length])
    for length in range(1, len(jpeg) - 2, 5):
        refusal(tmp_path, jpeg[:length], "a.jpg")


def test_bad_checksum_is_refused(tmp_path):
    data = bytearray(encode(GREY))
    data[data.index(b"IDAT") - 4 + 8 + 10] ^= 1
    assert "IDAT" in refusal(tmp_path, bytes(data))
    data = bytearray(encode(GREY))
    data[data.index(b"IHDR") + 18] ^= 1
    refusal(tmp_path, bytes(data))


def png(width, height, *chunks, kind=0):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def test_too_few_pixels_are_refused(tmp_path):
    rows = zlib.compress(b"".join(b"\0" + bytes(range(row, row + 64)) for row in range(64)))
    assert decode(tmp_path, png(64, 64, chunk(b"IDAT", rows)))[0][63, 63] == 126
    assert refusal(tmp_path, png(64, 64, chunk(b"IDAT", rows[: len(rows) // 2]))).startswith("damaged")
    assert refusal(tmp_path, png(64, 64)).startswith("damaged")


def test_pixels_beyond_the_palette_are_refused(tmp_path):
    pixels, clear = chunk(b"IDAT", zlib.compress(b"\0\1\2")), chunk(b"tRNS", b"\5")
    palette = [chunk(b"PLTE", bytes([9, 9, 9]) * n) for n in range(4)]
    assert decode(tmp_path, png(2, 1, palette[3], pixels, kind=3))[0].tolist() == [[9, 9]]
    for chunks in ([], [palette[0]], [palette[2]], [clear], [palette[1], clear]):
        assert refusal(tmp_path, png(2, 1, *chunks, pixels, kind=3)) == "damaged: a pixel has no colour in the palette"


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    bomb = png(9000, 9000, chunk(b"IDAT", zlib.compress(bytes(9001 * 9000))))
    assert len(bomb) < 80_000
    assert refusal(tmp_path, bomb) == f"9000x9000 is more than {images.MAX_PIXELS} pixels (--max_pixels)"
    assert refusal(tmp_path, png(2**20, 2**20, chunk(b"IDAT", b""))) == "more pixels than Pillow opens, some 178 million"
    assert "9 pixels" in refusal(tmp_path, encode(GREY), max_pixels=9)
    assert "bytes are too many" in refusal(tmp_path, encode(GREY) + bytes(2**20), max_pixels=9)


PROFILE = chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(100)))
PIXEL = chunk(b"IDAT", zlib.compress(b"\0\0"))


@functools.cache
def bombs():
    inflated = zlib.compress(bytes(3 * 10**8), 1)  # 300 MB in 1.3
    return {
        "text": png(1, 1, chunk(b"zTXt", b"k\0\0" + inflated), PIXEL),
        "international text": png(1, 1, chunk(b"iTXt", b"k\0\1\0\0\0" + inflated), PIXEL),
        "profile": png(1, 1, chunk(b"iCCP", b"k\0\0" + inflated), PIXEL),
        "many texts": png(1, 1, *[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**6)))] * 300, PIXEL),
        "pixels": png(20_000, 20_000, chunk(b"IDAT", inflated)),
        "more pixels than announced": png(1, 1, chunk(b"IDAT", inflated)),
    }


@pytest.mark.parametrize("kind", ["text", "international text", "profile", "many texts", "pixels", "more pixels than announced"])
def test_bombs_take_no_memory(tmp_path, kind):
    (tmp_path / "a.png").write_bytes(bombs()[kind])
    program = r"""if True:
        import pathlib, re, sys
        from fingerprint_jax.data import images
        # Not ru_maxrss, which begins with that of the process that started this one.
        used = lambda: int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) // 1024
        before = used()
        try:
            images.decode(pathlib.Path(sys.argv[1]))
        except ValueError as error:
            print(error)
        sys.exit(used() - before > 60 and f"{before} and {used() - before} MB")
    """
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "a.png"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == (kind != "more pixels than announced")


def test_files_made_to_waste_time_are_refused(tmp_path):
    assert decode(tmp_path, png(1, 1, *[PROFILE] * 2, PIXEL))[0].shape == (1, 1)
    assert refusal(tmp_path, png(1, 1, *[PROFILE] * 101, PIXEL)) == "more than 100 colour profiles, a file made to waste time"
    scans = encode(GREY, "JPEG", progressive=True)
    last = scans[scans.rindex(b"\xff\xda") : -2]
    assert decode(tmp_path, scans[:-2] + last * 2 + scans[-2:], "a.jpg")[0].shape == (7, 5)
    assert refusal(tmp_path, scans[:-2] + last * 101 + scans[-2:], "a.jpg") == "more than 100 scans, a file made to waste time"
    exif, other = segment(0xE1, b"Exif\0\0"), segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0")
    assert decode(tmp_path, JPEG[:2] + exif * 100 + other * 200 + JPEG[2:], "a.jpg")[0].shape == (7, 5)
    said = "more than 100 EXIF segments, a file made to waste time"
    assert refusal(tmp_path, JPEG[:2] + exif * 101 + JPEG[2:], "a.jpg") == said


JPEG = encode(GREY, "JPEG")


def segment(marker: int, data: bytes) -> bytes:
    return bytes([255, marker]) + struct.pack(">H", len(data) + 2) + data


def test_what_looks_like_scans_outside_of_the_scans_does_not_count(tmp_path):
    scan, thumbnail = b"\xff\xda", encode(GREY, "JPEG", progressive=True)
    sound = {
        "behind the end": JPEG + scan * 1000,
        "another image behind the end": JPEG + thumbnail * 50,
        "in segments": JPEG[:2] + segment(0xE5, scan * 30_000) * 3 + JPEG[2:],
        "thumbnails": JPEG[:2] + segment(0xE1, b"Exif\0\0" + thumbnail * 40) + JPEG[2:],
        "a comment": JPEG[:2] + segment(0xFE, scan * 200) + JPEG[2:],
    }
    for name, data in sound.items():
        np.testing.assert_array_equal(decode(tmp_path, data, "a.jpg")[0], decode(tmp_path, JPEG, "b.jpg")[0], err_msg=name)


def test_scans_count_wherever_a_decoder_meets_them(tmp_path):
    progressive = encode(GREY, "JPEG", progressive=True)
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    header = last[: 2 + int.from_bytes(last[2:4], "big")]
    waste = "more than 100 scans, a file made to waste time"
    hostile = {
        "without pixels": progressive[:-2] + header * 101,
        "behind filling": progressive[:-2] + (b"\xff" * 9 + last) * 101 + b"\xff\xd9",
        "behind restarts": progressive[:-2] + (b"\xff\xd0\xff\x01" + last) * 101,
        "behind zeros": progressive[:-2] + (b"\xff\0\0\0" + last) * 101,
        "behind a segment of no length": progressive[:-2] + (b"\xff\xe1\0\0" + last) * 101,
        "between segments": progressive[:-2] + (segment(0xE1, b"\xff\xd9") + last) * 101,
    }
    for name, data in hostile.items():
        assert refusal(tmp_path, data, "a.jpg") == waste, name
    many = JPEG[:2] + segment(0xE9, b"") * 100_001 + JPEG[2:]
    assert refusal(tmp_path, many, "a.jpg") == "more than 100000 segments or chunks, a file made to waste time"


def test_the_name_of_a_profile_in_pixels_or_texts_is_no_profile(tmp_path):
    row = b"\0" + b"iCCP" * 16
    pixels = chunk(b"IDAT", zlib.compress(row * 64, 0))
    assert pixels.count(b"iCCP") > 100
    decoded = decode(tmp_path, png(64, 64, chunk(b"tEXt", b"k\0" + b"iCCP" * 200), pixels))[0]
    assert decoded[0].tobytes() == row[1:]
    assert decode(tmp_path, png(1, 1, PIXEL) + PROFILE * 200)[0].shape == (1, 1)  # behind the end
    assert refusal(tmp_path, png(1, 1, PIXEL, *[PROFILE] * 101)) == "more than 100 colour profiles, a file made to waste time"


def test_bits_of_sixteen_bit_files(tmp_path):
    values = np.array([[0, 1, 8, 9, 2048, 4094, 4095]], np.uint16)
    pixels, info = decode(tmp_path, encode(Image.fromarray(values)), bits=12)
    np.testing.assert_array_equal(pixels, np.rint(values * (255 / 4095)))
    assert info.deep == (0, 4095) and info.common == 4094
    assert (
        refusal(tmp_path, encode(Image.fromarray(values + 1)), bits=12) == "its largest value is 4096, 12 bits hold 4095 (--bits)"
    )
    np.testing.assert_array_equal(decode(tmp_path, encode(GREY), bits=12)[0], GREY)  # 8 bits stay as they are
    every = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(decode(tmp_path, encode(Image.fromarray(every)))[0], np.rint(every / 257))


def test_sixteen_bit_colour_tells_its_depth_and_takes_no_bits(tmp_path):
    for kind, channels in ((2, 3), (6, 4), (4, 2)):
        values = np.full((1, 2, channels), 4095, ">u2")
        values[0, 0] = 300
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, kind, 0, 0, 0))
        pixels = chunk(b"IDAT", zlib.compress(b"\0" + values.tobytes()))
        data = b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")
        assert decode(tmp_path, data)[1].deep == (256, 4095)
        assert refusal(tmp_path, data, bits=12).startswith("16-bit colour, of which only the high bytes are read: --bits=12")


EXIF_TYPES = {
    "short": (3, "HH", 6, 0),
    "rational": (5, "I", 2**31),
    "float": (11, "f", float("nan")),
    "double": (12, "I", 8),
    "text": (2, "4s", b"6"),
}


@pytest.mark.parametrize("kind", EXIF_TYPES)
def test_an_orientation_of_any_type_is_applied_or_passed_over(tmp_path, kind):
    code, form, *value = EXIF_TYPES[kind]
    exif = b"II*\0" + struct.pack("<IHHHI", 8, 1, 0x0112, code, 1) + struct.pack("<" + form, *value) + bytes(20)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        pixels = decode(tmp_path, png(2, 1, chunk(b"eXIf", exif), chunk(b"IDAT", zlib.compress(b"\0\1\2"))))[0]
    assert pixels.tolist() == ([[1], [2]] if kind == "short" else [[1, 2]])


def test_exif_that_is_cut_short_is_used_or_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    data, reasons = exif.tobytes()[6:], set()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for length in range(len(data)):
            try:
                decode(tmp_path, png(1, 1, chunk(b"eXIf", data[:length]), PIXEL))
            except ValueError as error:
                reasons.add(str(error).partition("(")[0])
    assert reasons == {"damaged: not a TIFF file ", "damaged: unpack requires a buffer of 4 bytes"}


def test_animations_are_refused(tmp_path):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    moving = encode(frames[0], save_all=True, append_images=frames[1:])
    assert b"acTL" in moving  # an APNG
    assert refusal(tmp_path, moving) == "2 frames, one is expected"
    photo = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert refusal(tmp_path, photo, "a.jpg") == "2 frames, one is expected"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        images.decode(tmp_path / "a.png")
