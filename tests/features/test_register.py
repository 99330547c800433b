"""The body's box, against bodies drawn at known places."""

import numpy as np
import pytest

from fingerprint_jax.features import register

SIZE = 48


def _body(y: float, x: float, height: float, width: float, side: int = 120) -> np.ndarray:
    """A body with two dark lungs, its centre and half-axes in pixels: uint8 [side,side,1]."""
    rows, columns = np.mgrid[:side, :side] + 0.5

    def inside(cy, cx, h, w):
        return ((rows - y - cy * height) / (h * height)) ** 2 + ((columns - x - cx * width) / (w * width)) ** 2 < 1

    image = np.full((side, side), 10, np.uint8)
    image[inside(0, 0, 1, 1)] = 150
    image[inside(0, -0.45, 0.6, 0.3)] = 40
    image[inside(0.1, 0.45, 0.6, 0.3)] = 40
    return image[..., None]


def test_the_box_is_that_of_the_body():
    assert register.body_box(_body(50, 60, 30, 40)[..., 0]) == (20, 80, 20, 100)


def test_a_bright_speck_beside_the_body_moves_nothing():
    image = _body(50, 60, 30, 40)
    speck = image.copy()
    speck[100:108, 5:30] = 200  # a table under the patient
    np.testing.assert_array_equal(register.registered(speck[None], SIZE), register.registered(image[None], SIZE))


def test_a_body_moved_and_scaled_gives_nearly_the_same_frame():
    images = np.stack([_body(50, 60, 30, 40), _body(62, 55, 45, 50), _body(70, 60, 40, 55)])
    frames = register.registered(images, SIZE)
    assert frames.shape == (3, SIZE, SIZE) and frames.dtype == np.float32
    apart = np.abs(frames[1:] - frames[:1]).mean()
    unregistered = np.abs(images[1:].astype(float) - images[:1]).mean() / 255
    assert apart < 0.02 and unregistered > 0.1


def test_an_image_is_registered_by_itself():
    images = np.stack([_body(50, 60, 30, 40), _body(62, 55, 45, 50)])
    np.testing.assert_array_equal(register.registered(images, SIZE)[1:], register.registered(images[1:], SIZE))


def test_the_frame_is_kept_without_a_body():
    speck = np.full((64, 64, 1), 10, np.uint8)
    speck[20:30, 20:60] = 200  # wide enough, but lower than a quarter of the frame
    images = np.stack([speck, speck.swapaxes(0, 1)])
    np.testing.assert_allclose(register.registered(images, 64), images[..., 0] / 255, atol=1e-6)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_constant_image_stays_constant(value):
    frames = register.registered(np.full((1, 18, 18, 1), value, np.uint8), 16)
    np.testing.assert_allclose(frames, value / 255, atol=1e-6)


def test_a_small_image_is_enlarged():
    image = np.zeros((1, 18, 18, 1), np.uint8)
    image[0, 4:14, 2:16] = 204
    np.testing.assert_allclose(register.registered(image, 32), 0.8, atol=1e-6)


def test_a_smaller_frame_averages():
    # A chequerboard of single pixels becomes the mean of its two levels.
    image = np.where(np.indices((64, 64)).sum(axis=0) % 2, 200, 100).astype(np.uint8)
    frames = register.registered(image[None, ..., None], 16)
    np.testing.assert_allclose(frames[:, 1:-1, 1:-1], 150 / 255, atol=0.01)


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="features.size=0"):
        register.registered(np.zeros((1, 18, 18, 1), np.uint8), 0)
