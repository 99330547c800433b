import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from fingerprint_jax.data import augment

KEY = 3  # seed of every draw
N = 256


def noise(n=N, size=(5, 6)):
    return np.random.default_rng(0).uniform(size=(n, *size, 1)).astype(np.float32)


@functools.cache
def changed(**options):
    return np.asarray(jax.jit(functools.partial(augment.augment, **options))(noise(), jax.random.key(KEY)))


@pytest.mark.parametrize(
    "mode,black,white",
    [("unit", 0, 1), ("symmetric", -1, 1), ("imagenet", -0.449 / 0.226, (1 - 0.449) / 0.226), ("none", 0, 255)],
)
def test_normalize(mode, black, white):
    images = np.array([0, 255, 51], np.uint8).reshape(1, 1, 3, 1)
    values = augment.normalize(images, mode)
    assert values.dtype == np.float32
    expected = [black, white, black + 0.2 * (white - black)]
    np.testing.assert_allclose(values.reshape(-1), expected, rtol=1e-6, atol=1e-6)


def test_refusals():
    with pytest.raises(ValueError, match="data.normalize='zscore' is unknown: use one of unit, symmetric, imagenet, none"):
        augment.normalize(np.zeros((1, 2, 2, 1), np.uint8), "zscore")
    with pytest.raises(ValueError, match="augment.shift=-1 is out of range: use 0 or more"):
        augment.augment(noise(), jax.random.key(KEY), shift=-1)
    with pytest.raises(ValueError, match="augment.flip=2 is out of range: use 0 to 1"):
        augment.augment(noise(), jax.random.key(KEY), flip=2)
    with pytest.raises(ValueError, match="views.shift=-1 is out of range: use 0 or more"):
        next(augment.views(noise(), shift=-1))


def test_views_are_mirrors_and_shifts_each_once():
    images = noise(2)
    np.testing.assert_array_equal([*augment.views(images)], [images])
    np.testing.assert_array_equal([*augment.views(images, flip=True)], [images, images[:, :, ::-1]])
    places = [(0, 0), (2, 0), (-2, 0), (0, 2), (0, -2)]
    rows, columns = np.arange(5), np.arange(6)
    expected = [images[:, np.clip(rows - down, 0, 4)][:, :, np.clip(columns - right, 0, 5)] for down, right in places]
    np.testing.assert_array_equal([*augment.views(images, shift=2)], expected)
    both = [view for image in expected for view in (image, image[:, :, ::-1])]
    np.testing.assert_array_equal([*augment.views(images, flip=True, shift=2)], both)


def test_everything_off_is_the_identity():
    images = noise()
    assert augment.augment(images, jax.random.key(KEY)) is images


def test_flip_is_horizontal_and_as_often_as_asked():
    images, result = noise(), changed(flip=0.25)
    flipped = (result == images[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (result == images).all(axis=(1, 2, 3))
    assert (flipped ^ kept).all()
    # 64 of 256 expected, standard deviation 6.9.
    assert 64 - 28 < flipped.sum() < 64 + 28
    np.testing.assert_array_equal(changed(flip=1.0), images[:, :, ::-1])


def test_shift_takes_every_offset_and_repeats_the_border():
    shifted = {}
    for image, result in zip(noise(), changed(shift=2), strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
        places = [(i, j) for i in range(5) for j in range(5) if (padded[i : i + 5, j : j + 6] == result).all()]
        assert len(places) == 1
        shifted[places[0]] = shifted.get(places[0], 0) + 1
    assert len(shifted) == 25  # 256 draws miss one of 25 offsets with probability 7e-4


def test_brightness_adds_one_number_to_an_image():
    difference = changed(brightness=0.2) - noise()
    assert difference.std(axis=(1, 2, 3)).max() < 1e-6
    amount = difference.mean(axis=(1, 2, 3))
    assert -0.2 <= amount.min() < -0.18 and 0.18 < amount.max() <= 0.2


def test_contrast_scales_around_the_mean_of_the_image():
    images, result = noise(), changed(contrast=0.3)
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(result.mean(axis=(1, 2, 3), keepdims=True), mean, rtol=1e-5)
    ratio = (result - mean).std(axis=(1, 2, 3)) / (images - mean).std(axis=(1, 2, 3))
    np.testing.assert_allclose(result, mean + (images - mean) * ratio[:, None, None, None], atol=1e-5)
    assert 0.7 <= ratio.min() < 0.73 and 1.27 < ratio.max() <= 1.3


@pytest.mark.parametrize(("angle", "scale"), [(0, 1), (30, 1), (-10, 1.2), (90, 0.8)])
def test_a_turn_is_scipys(angle, scale):
    image = noise(1, (7, 6))[0]
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    matrix, centre = np.array([[cos, sin], [-sin, cos]]) / scale, np.array([3, 2.5])
    expected = scipy.ndimage.affine_transform(image[..., 0], matrix, centre - matrix @ centre, order=1, mode="nearest")
    np.testing.assert_allclose(augment.turn(image, np.float32(angle), np.float32(scale))[..., 0], expected, atol=1e-5)


def test_turns_and_sizes_are_drawn_within_their_range():
    y, x = np.mgrid[-7.5:8, -7.5:8]
    plane = np.stack([y, x])[..., None].astype(np.float32)  # the coordinates themselves: their middle tells the map
    keys = jax.random.split(jax.random.key(KEY), 64)
    apply = jax.jit(functools.partial(augment.augment, rotate=20.0, scale=0.3))
    found = np.stack([apply(plane, key)[0, 7:9, 7:9, 0] for key in keys])
    by_row, by_column = (found[:, 1] - found[:, 0]).mean(axis=1), (found[:, :, 1] - found[:, :, 0]).mean(axis=1)
    angle, scale = np.rad2deg(np.arctan2(by_column, by_row)), 1 / np.hypot(by_row, by_column)
    assert -20 <= angle.min() < -15 and 15 < angle.max() <= 20
    assert 0.7 <= scale.min() + 1e-5 and scale.min() < 0.78 and 1.22 < scale.max() <= 1.3 + 1e-5


@pytest.mark.parametrize(("area", "ratio", "place"), [(0.5, 1, (0, 1)), (0.5, 4 / 3, (0.3, 0.6)), (0.9, 0.75, (0.5, 0.5))])
def test_a_part_is_pillows_box(area, ratio, place):
    image, size = noise(1, (7, 9))[0], np.array([7, 9])
    shares = np.minimum(np.sqrt([area * ratio, area / ratio]), 1)
    (top, left), (height, width) = place * (1 - shares) * size, shares * size
    box = (left, top, left + width, top + height)
    expected = np.asarray(Image.fromarray(image[..., 0]).resize((9, 7), Image.Resampling.BILINEAR, box=box))
    found = augment.part(image, np.float32(area), np.float32(ratio), np.array(place, np.float32))
    np.testing.assert_allclose(found[..., 0], expected, atol=1e-5)


def test_crops_lie_within_the_image_and_their_areas_within_the_range():
    y, x = np.mgrid[0:16, 0:16] + 0.5
    plane = np.stack([y, x])[..., None].astype(np.float32)  # the coordinates themselves: their middle tells the part
    keys = jax.random.split(jax.random.key(KEY), 256)
    apply = jax.jit(functools.partial(augment.augment, crop=0.5))
    rows, columns = np.stack([apply(plane, key)[..., 0] for key in keys]).swapaxes(0, 1)
    # Both planes of a key are cut by themselves: each tells one side.
    tall, wide = rows[:, 8, 8] - rows[:, 7, 8], columns[:, 8, 8] - columns[:, 8, 7]
    for side, values in ((tall, rows), (wide, columns)):
        assert np.sqrt(0.5 * 0.75) - 1e-4 < side.min() < 0.67 and 0.95 < side.max() < 1 + 1e-4
        assert values.min() >= 0.5 - 1e-4 and values.max() <= 15.5 + 1e-4
    low = tall < 0.9
    first = (rows[:, 7:9, 8].mean(axis=1) - 8 * tall)[low] / (16 * (1 - tall[low]))  # share of the way to the last place
    assert -1e-3 < first.min() < 0.05 and 0.95 < first.max() < 1 + 1e-3


def test_a_rectangle_of_a_share_of_the_images_is_erased():
    images = noise(size=(20, 30)) + 1
    result = np.asarray(jax.jit(functools.partial(augment.augment, erase=0.5))(images, jax.random.key(KEY)))
    holes = (result == 0)[..., 0]
    assert ((result == images) | (result == 0)).all()
    changed = holes.any(axis=(1, 2))
    assert 128 - 32 < changed.sum() < 128 + 32  # standard deviation 8
    for hole in holes[changed]:
        rows, columns = hole.any(axis=1), hole.any(axis=0)
        np.testing.assert_array_equal(hole, rows[:, None] & columns[None, :])
        assert np.ptp(np.flatnonzero(rows)) + 1 == rows.sum() and np.ptp(np.flatnonzero(columns)) + 1 == columns.sum()
    share = holes[changed].mean(axis=(1, 2))
    assert 0.01 < share.min() < 0.05 and 0.28 < share.max() < 0.36


def test_images_differ_and_the_key_decides():
    apply = jax.jit(functools.partial(augment.augment, brightness=0.2))
    images = np.zeros((64, 2, 2, 1), np.float32)
    a, again, b = apply(images, jax.random.key(1)), apply(images, jax.random.key(1)), apply(images, jax.random.key(2))
    assert len(np.unique(a[:, 0, 0, 0])) == 64
    np.testing.assert_array_equal(a, again)
    assert not np.any(a == b)


SHARDED = """
import functools, jax, numpy as np
from fingerprint_jax import sharding
from fingerprint_jax.data import augment
assert jax.device_count() == 4
options = {"flip": 0.5, "shift": 2, "brightness": 0.1, "contrast": 0.1, "rotate": 9, "scale": 0.1, "erase": 0.5, "crop": 0.5}
apply = jax.jit(functools.partial(augment.augment, **options))
images = np.random.default_rng(0).uniform(size=(16, 5, 6, 1)).astype(np.float32)
split = sharding.split(sharding.make_mesh())
sharded = jax.jit(apply, out_shardings=split)(jax.device_put(images, split), jax.random.key(1))
assert len(sharded.sharding.device_set) == 4
np.testing.assert_allclose(sharded, apply(images, jax.random.key(1)), rtol=1e-5, atol=1e-6)
"""


def test_sharded_images_get_the_same_randomness():
    env = {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
