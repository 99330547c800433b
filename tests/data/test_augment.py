import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from PIL import Image
from skimage.filters import gabor_kernel

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


@pytest.mark.parametrize("mode", augment.NORMALIZE)
def test_every_grey_value_comes_back_and_what_lies_beyond_is_cut_off(mode):
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    values = np.asarray(augment.normalize(images, mode))
    np.testing.assert_array_equal(augment.denormalize(values, mode), images)
    wide = values + 0.5 * (values - values.mean())  # black and white 1.5 times as far apart
    found = np.asarray(augment.denormalize(wide, mode))
    assert found.dtype == np.uint8 and found[0, 0, 0, 0] == 0 and found[0, -1, -1, 0] == 255
    np.testing.assert_allclose(found, np.clip(images + 0.5 * (images - 127.5), 0, 255), atol=0.51)


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="data.normalize='zscore' is unknown; known: unit, symmetric, imagenet, none"):
        augment.normalize(np.zeros((1, 2, 2, 1), np.uint8), "zscore")


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


@pytest.mark.parametrize(
    ("size", "share", "hidden"), [((48, 64), 0.25, 3), ((48, 64), 1.0, 12), ((40, 20), 0.3, 2), ((5, 6), 0.4, 0)]
)
def test_a_share_of_the_patches_is_masked_others_in_each_image(size, share, hidden):
    images = noise(64, size) + 1
    result = np.asarray(jax.jit(functools.partial(augment.augment, mask=share))(images, jax.random.key(KEY)))
    assert ((result == images) | (result == 0)).all()
    holes, rows, columns = (result == 0)[..., 0], *(range(0, n, 16) for n in size)
    patches = np.stack([holes[:, y : y + 16, x : x + 16].mean(axis=(1, 2)) for y in rows for x in columns], axis=1)
    assert set(np.unique(patches)) <= {0, 1}  # whole ones, those cut by the border too
    np.testing.assert_array_equal(patches.sum(axis=1), hidden)
    if 0 < share < 1 and hidden:
        assert (abs(patches.mean(axis=0) - hidden / patches.shape[1]) < 4 * np.sqrt(0.25 / 64)).all()


@pytest.mark.parametrize(("frequency", "angle"), [(0.1, 0.0), (0.25, 0.7), (1 / 16, 2.0)])
def test_a_gabor_kernel_is_that_of_scikit_image(frequency, angle):
    sigma = augment.GABOR_SIGMA
    expected = gabor_kernel(frequency, angle, sigma_x=sigma, sigma_y=sigma, n_stds=3, offset=0.3)
    centre = np.array([expected.shape], np.float32) // 2
    found = augment.gabors(expected.shape, centre, np.ones(1), np.full(1, 0.3), np.float32(frequency), np.float32(angle))
    np.testing.assert_allclose(found[..., 0], expected.real * (2 * np.pi * sigma**2), atol=1e-5)


def test_a_sum_of_kernels_is_a_convolution():
    rng, sigma = np.random.default_rng(0), augment.GABOR_SIGMA
    places, weights = rng.permutation(40 * 30)[:9], rng.normal(size=9).astype(np.float32)
    impulses = np.zeros((40, 30))
    impulses.flat[places] = weights
    kernel = gabor_kernel(0.15, 1.1, sigma_x=sigma, sigma_y=sigma, n_stds=12).real * (2 * np.pi * sigma**2)
    places = np.stack(np.unravel_index(places, impulses.shape), axis=1).astype(np.float32)
    found = augment.gabors((40, 30, 1), places, weights, np.zeros(9), np.float32(0.15), np.float32(1.1))
    np.testing.assert_allclose(found[..., 0], scipy.signal.convolve(impulses, kernel, mode="same"), atol=1e-5)


def test_gabor_noise_has_one_frequency_and_direction_and_a_drawn_deviation():
    images = np.zeros((64, 64, 64, 1), np.float32)
    result = np.asarray(jax.jit(functools.partial(augment.augment, gabor=0.2))(images, jax.random.key(KEY)))[..., 0]
    deviation = np.sqrt((result**2).mean(axis=(1, 2)))
    assert 0 < deviation.min() < 0.02 and 0.18 < deviation.max() <= 0.2
    # Its power lies around one frequency and the opposite one, as wide as the bell is narrow.
    power = abs(np.fft.fft2(result / deviation[:, None, None])) ** 2
    grid = np.stack(np.meshgrid(*[np.fft.fftfreq(64)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    peaks = grid[power.reshape(64, -1).argmax(axis=1)]
    length = np.linalg.norm(peaks, axis=1)
    assert 0.03 < length.min() < 0.09 and 0.2 < length.max() < 0.3
    near = np.minimum(*(np.linalg.norm(grid[None] - sign * peaks[:, None], axis=2) for sign in (1, -1))) < 0.12
    share = (power.reshape(64, -1) * near).sum(axis=1) / power.sum(axis=(1, 2))
    assert share.min() > 0.95
    assert len(np.unique(peaks, axis=0)) > 32


def test_masking_and_noise_leave_the_other_draws_as_they_are():
    images, kept = noise(size=(32, 32)), []
    for options in ({}, {"mask": 0.25, "gabor": 1e-6}):
        apply = jax.jit(functools.partial(augment.augment, flip=0.5, shift=2, **options))
        kept.append(np.asarray(apply(images, jax.random.key(KEY))))
    seen = kept[1] != 0
    np.testing.assert_allclose(kept[1][seen], kept[0][seen], atol=1e-5)
    assert seen.mean() == 0.75


def test_images_differ_and_the_key_decides():
    apply = jax.jit(functools.partial(augment.augment, brightness=0.2))
    images = np.zeros((64, 2, 2, 1), np.float32)
    a, again, b = apply(images, jax.random.key(1)), apply(images, jax.random.key(1)), apply(images, jax.random.key(2))
    assert len(np.unique(a[:, 0, 0, 0])) == 64
    np.testing.assert_array_equal(a, again)
    assert not np.any(a == b)


SHARDED = """
import functools, jax, numpy as np
from fingerprint_jax.data import augment
from fingerprint_jax.runtime import sharding
assert jax.device_count() == 4
options = {"flip": 0.5, "shift": 2, "brightness": 0.1, "contrast": 0.1, "rotate": 9, "scale": 0.1}
options |= {"erase": 0.5, "gabor": 0.1, "mask": 0.5, "crop": 0.5}
apply = jax.jit(functools.partial(augment.augment, **options))
images = np.random.default_rng(0).uniform(size=(16, 17, 6, 1)).astype(np.float32)
split = sharding.split(sharding.make_mesh())
sharded = jax.jit(apply, out_shardings=split)(jax.device_put(images, split), jax.random.key(1))
assert len(sharded.sharding.device_set) == 4
np.testing.assert_allclose(sharded, apply(images, jax.random.key(1)), rtol=1e-5, atol=1e-6)
"""


def test_sharded_images_get_the_same_randomness():
    env = {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
