"""Audits of few images."""

import pytest

from fingerprint_jax.estimators import local_match


@pytest.fixture(scope="module", autouse=True)
def _small_blocks():
    """Blocks of local_match are filled up with images, which are compared for nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_match, "BLOCK", 64)
        yield
