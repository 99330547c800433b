"""Images brought to a common frame: the box around the body fills it."""

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

LEAST = 0.25  # share of each side that a body's box covers; what is smaller is taken for noise


def registered(images: np.ndarray, size: int = 64) -> np.ndarray:
    """The box of the body scaled to the frame: uint8 [N,H,W,1] -> float32 [N,size,size] in 0..1.

    The body is the largest connected component above Otsu's threshold. An image without one, or with one that covers less than a
    quarter of the height or width, keeps its frame. Each image is handled by itself. Raises ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"features.size={size}: use at least 1 pixel")
    out = np.empty((len(images), size, size), np.float32)
    for i, image in enumerate(images[..., 0]):
        top, bottom, left, right = body_box(image)
        # Pillow averages over what a pixel of the smaller frame covers, so that noise and edges do not alias.
        body = Image.fromarray(image[top:bottom, left:right].astype(np.float32))
        out[i] = np.asarray(body.resize((size, size), Image.Resampling.BILINEAR)) / 255
    return out


def body_box(image: np.ndarray) -> tuple[int, int, int, int]:
    """First and last row plus one, first and last column plus one of the body: uint8 [H,W]; the frame where there is none."""
    height, width = image.shape
    components, count = ndimage.label(image > threshold_otsu(image))  # pyright: ignore[reportGeneralTypeIssues]
    if count:
        sizes = np.unique(components, return_counts=True)[1]  # the background first
        rows, columns = ndimage.find_objects(components)[int(sizes[1:].argmax())]
        if rows.stop - rows.start >= LEAST * height and columns.stop - columns.start >= LEAST * width:
            return rows.start, rows.stop, columns.start, columns.stop
    return 0, height, 0, width


FEATURES = {"registered": registered}
