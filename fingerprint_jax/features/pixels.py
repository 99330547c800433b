"""The image itself, grey levels 0..1."""

import numpy as np
from skimage.transform import resize_local_mean


def pixels(images: np.ndarray, *, size: int = 0) -> np.ndarray:
    """Grey levels, row by row: uint8 [N,H,W,1] -> float32 [N, size * size], or [N, H * W] where size is 0.

    Each of the size x size values is the mean of the area that it covers.

    Raises ValueError for a size above height or width.
    """
    count, height, width, _ = images.shape
    values = images[..., 0] / np.float32(255)
    most = min(height, width)
    if not 0 <= size <= most:
        raise ValueError(f"features.size={size}: use at most {most} for images of {width}x{height} pixels, or 0 to keep them")
    if size:
        values = resize_local_mean(values, (count, size, size))
    return values.reshape(count, -1)


def images(images: np.ndarray, *, size: int = 0) -> np.ndarray:
    """Grey levels as a map, for comparisons place by place: uint8 [N,H,W,1] -> float32 [N,H,W], or [N,size,size].

    With a `size`, images of which both sides are larger are averaged down to it; others stay as they are.
    """
    values = images[..., 0] / np.float32(255)
    count, *sides = values.shape
    return resize_local_mean(values, (count, size, size)) if 0 < size < min(sides) else values


FEATURES = {"pixels": pixels, "images": images}
