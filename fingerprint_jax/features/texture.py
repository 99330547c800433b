"""Textures by scikit-image and PyWavelets; grey levels are 0..1 unless it says otherwise. Constant images have finite features.

`texture` has the parameters of Neural Nexus (ImageCLEFmedical 2025, subtask 1, run 1881).
"""

import functools
from collections.abc import Callable

import numpy as np
import pywt
from scipy.signal import fftconvolve
from skimage.feature import local_binary_pattern
from skimage.filters import gabor_kernel, threshold_otsu
from skimage.measure import label

from fingerprint_jax.features import slow

ANGLES = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)


@slow
def lbp(images: np.ndarray, *, points: int = 8, radius: float = 1.0) -> np.ndarray:
    """Frequencies of the uniform local binary patterns: uint8 [N,H,W,1] -> float32 [N, points + 2].

    Ojala, Pietikainen & Maenpaa 2002, IEEE Transactions on Pattern Analysis and Machine Intelligence 24:971. Entry k is the share
    of pixels with k neighbours at least as bright, in one run; the last one that of all other patterns.
    """

    def histogram(image: np.ndarray) -> np.ndarray:
        codes = local_binary_pattern(image, points, radius, "uniform").astype(np.int64)
        return np.bincount(codes.ravel(), minlength=points + 2) / codes.size

    return _each(histogram, images)


@slow
def glcm(images: np.ndarray) -> np.ndarray:
    """Haralick's properties of the co-occurrences of grey levels: uint8 [N,H,W,1] -> float32 [N,16].

    Contrast, correlation, energy and homogeneity, each at 0, 45, 90 and 135 degrees, of 256 levels one pixel apart, symmetric.
    """

    # From the pairs of neighbours. `skimage.feature.graycoprops` reads tables of 256 x 256 x 4, which takes 6 (256 px) to 20 times
    # (64 px) as long.
    def properties(image: np.ndarray) -> np.ndarray:
        x = image.astype(np.int64)
        pairs = (x[:, :-1], x[:, 1:]), (x[:-1, :-1], x[1:, 1:]), (x[:-1], x[1:]), (x[:-1, 1:], x[1:, :-1])
        return np.stack([_properties(one.ravel(), other.ravel()) for one, other in pairs], axis=1).ravel()

    return _each(properties, images)


def _properties(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Contrast, correlation, energy and homogeneity of pairs of grey levels [P], of which each is also read the other way round."""
    squares = (one - other) ** 2
    counts = np.bincount(256 * one + other, minlength=256**2).reshape(256, 256)
    share = (counts + counts.T) / (2 * len(one))
    mean = (one.mean() + other.mean()) / 2
    variance = (np.square(one - mean).mean() + np.square(other - mean).mean()) / 2
    correlation = np.mean((one - mean) * (other - mean)) / variance if variance else 1.0
    return np.array([squares.mean(), correlation, np.sqrt(np.square(share).sum()), np.mean(1 / (1 + squares))])


@slow
def gabor(images: np.ndarray) -> np.ndarray:
    """Means, then standard deviations of the responses to nine Gabor filters: uint8 [N,H,W,1] -> float32 [N,18].

    Even filters of 21x21 pixels at 0.1, 0.3 and 0.5 cycles a pixel, each with the wave along the row, at 45 degrees and along the
    column; sigma is 4 pixels along the wave and 8 across (gamma 0.5). Borders are mirrored.
    """

    def responses(image: np.ndarray) -> np.ndarray:
        padded = np.pad(image / np.float32(255), 10, mode="reflect")
        found = fftconvolve(padded[None], _gabor_kernels(), mode="valid", axes=(1, 2))
        return np.concatenate([found.mean(axis=(1, 2)), found.std(axis=(1, 2))])

    return _each(responses, images)


@functools.cache
def _gabor_kernels() -> np.ndarray:
    kernels = [
        gabor_kernel(frequency, theta, sigma_x=4, sigma_y=8, n_stds=3).real  # pyright: ignore[reportArgumentType]
        for frequency in (0.1, 0.3, 0.5)
        for theta in ANGLES[:3]
    ]
    middles = [(kernel.shape[0] // 2, kernel.shape[1] // 2) for kernel in kernels]
    cut = [kernel[y - 10 : y + 11, x - 10 : x + 11] for kernel, (y, x) in zip(kernels, middles, strict=True)]
    return np.stack(cut).astype(np.float32)


@slow
def wavelet(images: np.ndarray) -> np.ndarray:
    """Mean squares of the bands of two levels of Haar's wavelet (db1): uint8 [N,H,W,1] -> float32 [N,7].

    The approximation, then horizontal, vertical and diagonal details of level 2, then of level 1.
    """
    approximation, *details = pywt.wavedec2(images[..., 0] / 255, "db1", level=2, axes=(1, 2))
    bands = [approximation, *(band for level in details for band in level)]
    return np.stack([np.square(band).mean(axis=(1, 2)) for band in bands], axis=1).astype(np.float32)


@slow
def moments(images: np.ndarray) -> np.ndarray:
    """Mean, variance, skewness and excess kurtosis (0 of a constant image): uint8 [N,H,W,1] -> float32 [N,4]."""
    pixels = images.reshape(len(images), -1).astype(np.float64)  # whole numbers: their sums are exact
    mean, variance = pixels.mean(axis=1), pixels.var(axis=1)
    z = (pixels - mean[:, None]) / np.sqrt(np.where(variance > 0, variance, 1))[:, None]
    kurtosis = np.where(variance > 0, (z**4).mean(axis=1) - 3, 0)
    return np.stack([mean / 255, variance / 255**2, (z**3).mean(axis=1), kurtosis], axis=1).astype(np.float32)


@slow
def otsu(images: np.ndarray) -> np.ndarray:
    """Connected components (8 neighbours) of the pixels above Otsu's threshold: uint8 [N,H,W,1] -> float32 [N,2].

    How many, and the mean share of the image that one covers; both 0 of a constant image.
    """

    def components(image: np.ndarray) -> np.ndarray:
        bright = image > threshold_otsu(image)
        _, count = label(bright, return_num=True)  # pyright: ignore[reportGeneralTypeIssues]
        return np.array([count, bright.mean() / max(count, 1)])

    return _each(components, images)


@slow
def texture(images: np.ndarray) -> np.ndarray:
    """`glcm`, `gabor`, `wavelet`, `moments` and `otsu` side by side: uint8 [N,H,W,1] -> float32 [N,47]."""
    return np.concatenate([feature(images) for feature in (glcm, gabor, wavelet, moments, otsu)], axis=1)


def _each(feature: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    return np.stack([feature(image) for image in images[..., 0]]).astype(np.float32)


FEATURES = {"lbp": lbp, "glcm": glcm, "gabor": gabor, "wavelet": wavelet, "moments": moments, "otsu": otsu, "texture": texture}
