"""The spectrum of an image: upsampling leaves its marks there, whatever the image shows."""

import numpy as np
from scipy.signal.windows import hann

ROUNDING = 1 / 12  # power of the rounding to grey levels, in squared grey levels


def radial_spectrum(images: np.ndarray, *, bins: int = 0) -> np.ndarray:
    """Means of the power's logarithm over rings of frequency: uint8 [N,H,W,1] -> float32 [N,bins].

    The power is that of the image less its mean under a Hann window, in squared grey levels: white noise has its variance at every
    frequency. To it comes the power of the rounding, so that a constant image has a finite logarithm. Ring k = 1..bins lies around
    k / bins of the highest frequency, the 1 / sqrt(2) cycles a pixel of a checkerboard; what is nearer to 0 is left out.

    Raises ValueError for more bins than half the shorter side, some would be empty; 0 takes that many.
    """
    _, height, width, _ = images.shape
    most = min(height, width) // 2
    if not 0 <= bins <= most:
        raise ValueError(f"features.bins={bins}: use at most {most} for images of {width}x{height} pixels, or 0 for that many")
    bins = bins or most
    window = np.outer(hann(height, sym=False), hann(width, sym=False))
    pixels = images[..., 0] - images.mean(axis=(1, 2, 3), keepdims=True)[..., 0]
    power = np.abs(np.fft.fft2(pixels * window)) ** 2 / np.square(window).sum()
    logarithm = np.log(power + ROUNDING).reshape(len(images), -1)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) * np.sqrt(2)
    ring = np.rint(radius * bins).astype(np.int64).ravel()
    order = np.argsort(ring, kind="stable")
    starts = np.searchsorted(ring[order], np.arange(bins + 1))
    sums = np.add.reduceat(logarithm[:, order], starts, axis=1)
    return (sums / np.bincount(ring, minlength=bins + 1))[:, 1:].astype(np.float32)


FEATURES = {"radial_spectrum": radial_spectrum}
