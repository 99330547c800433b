"""Filters that go over the images before a feature is taken, by scikit-image."""

import numpy as np
from skimage.feature import hessian_matrix, hessian_matrix_eigvals
from skimage.filters import gaussian, laplace
from skimage.restoration import denoise_bilateral


def _hessian(x: np.ndarray) -> np.ndarray:
    return hessian_matrix_eigvals(hessian_matrix(x, sigma=1, mode="reflect", order="rc", use_gaussian_derivatives=True))[0]


# {name: grey levels float64 [H,W] 0..255 -> [H,W]}. Derivatives have both signs: their zero becomes the middle grey level.
FILTERS = {
    "none": lambda x: x,
    "gaussian": lambda x: gaussian(x, sigma=1, preserve_range=True),
    "laplacian": lambda x: 128 + laplace(x),
    "hessian": lambda x: 128 + _hessian(x),
    "bilateral": lambda x: 255 * denoise_bilateral(x / 255, sigma_color=0.1, sigma_spatial=1, mode="edge"),
}


def enhance(images: np.ndarray, filter: str) -> np.ndarray:
    """Filtered images, of the same form: uint8 [N,H,W,1] -> uint8 [N,H,W,1].

    Args:
        images: each is filtered by itself, on the same scale, so that grey levels can be compared.
        filter: none; gaussian, of sigma 1 pixel; bilateral, of sigma 1 pixel and 0.1 of the range of grey levels; laplacian, four
            times the pixel less its four neighbours; hessian, the larger eigenvalue of the matrix of second derivatives at sigma 1
            pixel. The last two are in grey levels around 128; all are rounded and cut off at 0 and 255.
    """
    filtered = [FILTERS[filter](image.astype(np.float64)) for image in images[..., 0]]
    return np.clip(np.rint(filtered), 0, 255).astype(np.uint8)[..., None]
