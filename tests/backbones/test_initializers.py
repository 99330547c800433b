"""Parameters are those that jax.nn.initializers draws, whatever their shape."""

import jax
import numpy as np
import pytest

from fingerprint_jax.backbones import initializers

EXPECTED = {
    "he_normal": (initializers.he_normal, jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")),
    "lecun_normal": (initializers.lecun_normal, jax.nn.initializers.lecun_normal()),
    "glorot_uniform": (initializers.glorot_uniform, jax.nn.initializers.glorot_uniform()),
    "fan_in": tuple(of.variance_scaling(8.0, "fan_in", "normal") for of in (initializers, jax.nn.initializers)),
    "normal": (initializers.normal(0.02), jax.nn.initializers.normal(0.02)),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_values_are_those_of_jax(name):
    own, other = EXPECTED[name]
    for shape in ((3, 3, 5, 7), (32, 32), (1, 4097)):
        key = jax.random.key(len(shape))
        found, expected = own(key, shape, np.float32), other(key, shape, np.float32)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_shapes_share_programs():
    before = initializers._numbers._cache_size()
    for shape in ((3, 3, 5, 7), (32, 32), (700,), (20, 51)):
        initializers.normal(0.1)(jax.random.key(0), shape, np.float32)
    assert initializers._numbers._cache_size() <= before + 1
