import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

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
apply = jax.jit(functools.partial(augment.augment, flip=0.5, shift=2, brightness=0.1, contrast=0.1))
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
