"""Normalisation, augmentation and views on the device: pure functions."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

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
    if mode not in NORMALIZE:
        raise ValueError(f"data.normalize={mode!r} is unknown: use one of {', '.join(NORMALIZE)}")
    scale, offset = NORMALIZE[mode]
    return images.astype(jnp.float32) * scale + offset


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


def augment(
    images: jax.Array,
    key: jax.Array,
    *,
    flip: float = 0.0,
    shift: int = 0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    rotate: float = 0.0,
    scale: float = 0.0,
    erase: float = 0.0,
    crop: float = 0.0,
) -> jax.Array:
    """Crop, flip, shift, turn, contrast, brightness, erasure, in this order, of each image of [N,H,W,C] by itself; 0: not.

    The randomness of an image follows from the key and its place in the global batch, however that is sharded. Values are not
    clipped.

    Args:
        images: normalised.
        key: of the step and stream.
        flip: probability of a horizontal flip.
        shift: largest shift in whole pixels along each axis; the border is repeated.
        brightness: largest change added, in units of the images.
        contrast: largest relative change of the differences from the image's mean.
        rotate: largest angle in degrees, see `turn`; the border is repeated.
        scale: largest relative change of the size.
        erase: probability that a rectangle is set to zero, see `erased`.
        crop: least share of the area of a random part that is enlarged to the image, see `part`; sides from 3:4 to 4:3 of the
            image's, as torchvision's RandomResizedCrop.

    Raises:
        ValueError: a negative number, or a probability above 1.
    """
    options = {"flip": flip, "shift": shift, "brightness": brightness, "contrast": contrast, "rotate": rotate, "scale": scale}
    options |= {"erase": erase, "crop": crop}
    for name, value in options.items():
        share = name in ("flip", "scale", "erase", "crop")
        if value < 0 or (share and value > 1):
            raise ValueError(f"augment.{name}={value} is out of range: use {'0 to 1' if share else '0 or more'}")
    if not any(options.values()):
        return images

    def one(image, key):
        flip_key, shift_key, brightness_key, contrast_key, turn_key, erase_key, place_key, crop_key = jax.random.split(key, 8)
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
        if erase:
            hole = erased(image.shape, place_key) & jax.random.bernoulli(erase_key, erase)
            image = jnp.where(hole, 0, image)
        return image

    return jax.vmap(one)(images, jax.random.split(key, images.shape[0]))


def views(images: jax.Array, *, flip: bool = False, shift: int = 0) -> Iterator[jax.Array]:
    """The images [N,H,W,C], and what a prediction averages beside them.

    Args:
        images: normalised.
        flip: the mirror, horizontal, of each other view too.
        shift: four more, by so many whole pixels up, down, left and right; the border is repeated.

    Raises:
        ValueError: a negative shift.
    """
    if shift < 0:
        raise ValueError(f"views.shift={shift} is out of range: use 0 or more")
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    places = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)] if shift else [(0, 0)]
    for top, left in places:
        view = padded[:, top * shift : top * shift + height, left * shift : left * shift + width]
        yield view
        if flip:
            yield view[:, :, ::-1]
