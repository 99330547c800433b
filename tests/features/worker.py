"""A feature that tells where it was computed; worker processes import this file, so that it must not import JAX."""

import os
import sys

import numpy as np


def where(images: np.ndarray) -> np.ndarray:
    return np.tile(np.float32([os.getpid(), "jax" in sys.modules]), (len(images), 1))
