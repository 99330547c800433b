"""Normalisation, augmentation and views on the device: pure functions."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fingerprint_jax.runtime import names

PATCH = 16  # side in pixels of a patch that is masked
GABOR_SIGMA = 4.0  # deviation in pixels of the bell of Gabor noise

NORMALIZE = {  # mode: (scale, offset)
    "unit": (1 / 255, 0.0),
    "symmetric": (2 / 255, -1.0),
    "imagenet": (1 / (255 * 0.226), -0.449 / 0.226),  # mean and deviation of ImageNet, averaged over the channels
    "none": (1.0, 0.0),
}


def normalize(images: jax.Array, mode: str) -> jax.Array:
    """uint8 [N,H,W,1] -> float32: unit 0..1, symmetric -1..1, imagenet (grey mean .449, deviation .226), none 0..255.

    Raises ValueError for another mode.
    """
    names.check("data.normalize", mode, NORMALIZE)
    scale, offset = NORMALIZE[mode]
    return images.astype(jnp.float32) * scale + offset


def denormalize(images: jax.Array, mode: str) -> jax.Array:
    """Back from `normalize`: float32 [N,H,W,1] -> uint8, what is darker than black or brighter than white cut off."""
    scale, offset = NORMALIZE[mode]
    return jnp.clip(jnp.round((images - offset) / scale), 0, 255).astype(jnp.uint8)


def turn(image: jax.Array, angle: jax.Array, scale: jax.Array) -> jax.Array:
    """Image [H,W,C] turned by degrees, the row axis towards the column axis, and enlarged, about its centre; bilinear."""
    angle = jnp.deg2rad(angle)
    height, width, _ = image.shape
    y, x = jnp.meshgrid(jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij")
    rows = (jnp.cos(angle) * y + jnp.sin(angle) * x) / scale + (height - 1) / 2
    columns = (jnp.cos(angle) * x - jnp.sin(angle) * y) / scale + (width - 1) / 2
    sample = functools.partial(jax.scipy.ndimage.map_coordinates, coordinates=[rows, columns], order=1, mode="nearest")
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def part(image: jax.Array, area: jax.Array, ratio: jax.Array, place: jax.Array) -> jax.Array:
    """A rectangle of an image [H,W,C] in the size of the image; bilinear, the centres of the pixels at halves.

    Args:
        image: the image.
        area: of the rectangle, as a share of the image's.
        ratio: of the share of the height to that of the width; a side that would be longer than the image's is as long.
        place: [2] where it begins between the first place and the last, from 0 to 1.
    """
    shares = jnp.minimum(jnp.sqrt(area * jnp.stack([ratio, 1 / ratio])), 1)
    first = place * (1 - shares) * jnp.array(image.shape[:2])
    return jax.image.scale_and_translate(image, image.shape, (0, 1), 1 / shares, -first / shares, "linear", antialias=False)


def erased(shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    """Where a random rectangle lies in an image: (H, W, C) -> bool [H,W,1].

    Zhong et al. 2017 (arXiv 1708.04896) with the numbers of torchvision: 2 to 33 % of the area, sides at most 1 to 3.3.
    """
    area, ratio, *place = jax.random.uniform(key, (4,))
    ratio = jnp.exp((2 * ratio - 1) * jnp.log(3.3) / 2)
    side = jnp.sqrt(0.02 + 0.31 * area)
    inside = []
    for size, share, start in zip(shape[:2], (side * ratio, side / ratio), place, strict=True):
        first = start * (1 - jnp.minimum(share, 1)) * size
        inside.append((jnp.arange(size) >= first) & (jnp.arange(size) < first + share * size))
    return (inside[0][:, None] & inside[1][None, :])[..., None]


def masked(shape: tuple[int, ...], share: float, key: jax.Array) -> jax.Array:
    """Where a share of the patches lies, drawn without replacement, round(share * patches) of them: (H, W, C) -> bool [H,W,1]."""
    height, width = (-(-size // PATCH) for size in shape[:2])
    hidden = jax.random.permutation(key, height * width) < round(share * height * width)
    return hidden.reshape(height, width).repeat(PATCH, axis=0).repeat(PATCH, axis=1)[: shape[0], : shape[1], None]


def gabors(
    shape: tuple[int, ...], places: jax.Array, weights: jax.Array, phases: jax.Array, frequency: jax.Array, angle: jax.Array
) -> jax.Array:
    """A sum of Gabor kernels of one frequency and direction: (H, W, C), places [K,2], [K], [K], scalar, scalar -> [H,W,1].

    exp(-(x^2 + y^2) / (2 GABOR_SIGMA^2)) cos(2 pi frequency (x cos angle + y sin angle) + phase), x and y from the place, a row and
    a column, in pixels: Lagae et al. 2009 (SIGGRAPH), eq. 1. The factors of rows and columns are apart, two matrix products.
    """
    waves, factors = (frequency * jnp.sin(angle), frequency * jnp.cos(angle)), []
    for size, place, wave in zip(shape[:2], places.T, waves, strict=True):
        x = jnp.arange(size)[:, None] - place[None, :]
        bell, turn = jnp.exp(-(x**2) / (2 * GABOR_SIGMA**2)), 2 * jnp.pi * wave * x
        factors.append((bell, turn))
    (bell_y, turn_y), (bell_x, turn_x) = factors
    turn_x, bell_x = turn_x + phases[None, :], bell_x * weights[None, :]
    # cos(a + b) = cos a cos b - sin a sin b.
    even = jnp.matmul(bell_y * jnp.cos(turn_y), (bell_x * jnp.cos(turn_x)).T)
    return (even - jnp.matmul(bell_y * jnp.sin(turn_y), (bell_x * jnp.sin(turn_x)).T))[..., None]


def gabor_noise(shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    """Gabor noise of one random frequency and direction, mean square 1: (H, W, C) -> float32 [H,W,1].

    One kernel to 64 pixels, anywhere, with a random weight and phase; 1/16 to 1/4 cycles a pixel.
    """
    place_key, weight_key, phase_key, key = jax.random.split(key, 4)
    count = -(-shape[0] * shape[1] // 64)
    places = jax.random.uniform(place_key, (count, 2)) * jnp.array(shape[:2])[None, :]
    weights = jax.random.uniform(weight_key, (count,), minval=-1.0)
    phases = 2 * jnp.pi * jax.random.uniform(phase_key, (count,))
    octave, angle = jax.random.uniform(key, (2,))
    noise = gabors(shape, places, weights, phases, 2 ** (2 * octave - 4), jnp.pi * angle)
    return noise * jax.lax.rsqrt(jnp.maximum(jnp.mean(noise**2), 1e-12))


def augment(
    images: jax.Array,
    key: jax.Array,
    place: np.ndarray | None = None,
    *,
    flip: float = 0.0,
    shift: int = 0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    rotate: float = 0.0,
    scale: float = 0.0,
    erase: float = 0.0,
    gabor: float = 0.0,
    mask: float = 0.0,
    crop: float = 0.0,
) -> jax.Array:
    """What is not 0, of each image of [N,H,W,C] by itself.

    In this order: crop, flip, shift, turn, contrast, brightness, Gabor noise, erasure, masking.

    The randomness of an image follows from the key and its place in the global batch, however that is sharded. Values are not
    clipped.

    Args:
        images: normalised.
        key: of the step and stream.
        place: of each image in the global batch, a permutation [N]; None: they are in order.
        flip: probability of a horizontal flip.
        shift: largest shift in whole pixels along each axis; the border is repeated.
        brightness: largest change added, in units of the images.
        contrast: largest relative change of the differences from the image's mean.
        rotate: largest angle in degrees, see `turn`; the border is repeated.
        scale: largest relative change of the size.
        erase: probability that a rectangle is set to zero, see `erased`.
        gabor: largest deviation of Gabor noise, in units of the images, see `gabor_noise`.
        mask: share of the patches that is set to zero, see `masked`.
        crop: least share of the area of a random part that is enlarged to the image, see `part`; sides from 3:4 to 4:3 of the
            image's, as torchvision's RandomResizedCrop.
    """
    options = {"flip": flip, "shift": shift, "brightness": brightness, "contrast": contrast, "rotate": rotate, "scale": scale}
    options |= {"erase": erase, "gabor": gabor, "mask": mask, "crop": crop}
    if not any(options.values()):
        return images

    def one(image: jax.Array, key: jax.Array) -> jax.Array:
        # Another one goes to the end: the draws before it are then what they were without.
        keys = jax.random.split(key, 10)
        flip_key, shift_key, brightness_key, contrast_key, turn_key, erase_key, place_key, crop_key, gabor_key, mask_key = keys
        if crop:
            area, ratio, *place = jax.random.uniform(crop_key, (4,))
            image = part(image, crop + (1 - crop) * area, jnp.exp((2 * ratio - 1) * jnp.log(4 / 3)), jnp.stack(place))
        if flip:
            image = jnp.where(jax.random.bernoulli(flip_key, flip), image[:, ::-1], image)
        if shift:
            padded = jnp.pad(image, ((shift, shift), (shift, shift), (0, 0)), mode="edge")
            top, left = jax.random.randint(shift_key, (2,), 0, 2 * shift + 1)
            image = jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)
        if rotate or scale:
            angle, size = jax.random.uniform(turn_key, (2,), minval=-1.0)
            image = turn(image, rotate * angle, 1 + scale * size)
        if contrast:
            mean = image.mean()
            image = mean + (image - mean) * (1 + contrast * jax.random.uniform(contrast_key, minval=-1.0))
        if brightness:
            image = image + brightness * jax.random.uniform(brightness_key, minval=-1.0)
        if gabor:
            noise_key, amount_key = jax.random.split(gabor_key)
            image = image + gabor * jax.random.uniform(amount_key) * gabor_noise(image.shape, noise_key)
        if erase:
            hole = erased(image.shape, place_key) & jax.random.bernoulli(erase_key, erase)
            image = jnp.where(hole, 0, image)
        if mask:
            image = jnp.where(masked(image.shape, mask, mask_key), 0, image)
        return image

    keys = jax.random.split(key, images.shape[0])
    return jax.vmap(one)(images, keys if place is None else keys[place])


def views(images: jax.Array, *, flip: bool = False, shift: int = 0) -> Iterator[jax.Array]:
    """The images [N,H,W,C], and what a prediction averages beside them.

    Args:
        images: normalised.
        flip: the mirror, horizontal, of each other view too.
        shift: four more, by so many whole pixels up, down, left and right; the border is repeated.
    """
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    places = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)] if shift else [(0, 0)]
    for top, left in places:
        view = padded[:, top * shift : top * shift + height, left * shift : left * shift + width]
        yield view
        if flip:
            yield view[:, :, ::-1]
