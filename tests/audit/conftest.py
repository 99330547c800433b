"""Audits of few images."""

import pytest

from fingerprint_jax.estimators import patches


@pytest.fixture(scope="module", autouse=True)
def _small_blocks():
    """Blocks of images are filled up with images, which are compared for nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "BLOCK", 64)
        yield
