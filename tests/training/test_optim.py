"""Learning rates: their course over the steps, and their factors by parameter."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs import base
from fingerprint_jax.training import optim

NAMES = ("backbone/stem/conv/kernel", "backbone/stem/norm/scale", "head/bias", "head/kernel")


def _schedule(name, warmup, num_steps):
    share = optim.schedule(ConfigDict({"schedule": name, "warmup_steps": warmup, "drop": 0.5, "drops": 3}), num_steps)
    return [float(share(np.int32(step))) for step in range(num_steps)]


def test_schedules_follow_their_closed_forms():
    assert _schedule("constant", 0, 3) == [1, 1, 1]
    np.testing.assert_allclose(_schedule("constant", 4, 6), [0.25, 0.5, 0.75, 1, 1, 1])
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(8) / 8))
    np.testing.assert_allclose(_schedule("cosine", 0, 8), cosine, rtol=1e-5)
    np.testing.assert_allclose(_schedule("cosine", 2, 10)[2:], cosine, rtol=1e-5)
    np.testing.assert_allclose(_schedule("step", 0, 12), np.repeat([1, 0.5, 0.25], 4), rtol=1e-6)
    np.testing.assert_allclose(_schedule("step", 2, 7), [0.5, 1, 1, 0.5, 0.5, 0.25, 0.25], rtol=1e-6)
    with pytest.raises(ValueError, match="optimizer.schedule='linear' is unknown; known: constant, cosine, step"):
        _schedule("linear", 0, 2)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ((), (1, 1, 1, 1)),
        ((("^backbone/", 0.1),), (0.1, 0.1, 1, 1)),
        ((("norm", 0), ("backbone", 0.5)), (0.5, 0, 1, 1)),  # the first found counts
        ((("bias$", 2.0),), (1, 1, 2, 1)),
    ],
)
def test_factors_are_those_of_the_first_pattern_found(rates, expected):
    assert optim.factors(ConfigDict({"rates": rates}), NAMES) == dict(zip(NAMES, expected, strict=True))


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((("backbon$", 0.1),), "'backbon\\$' is found in no parameter's path, such as backbone/stem/conv/kernel or head/kernel"),
        (((".", 0),), "freezes every parameter"),
        ((("(", 0),), "optimizer.rates: '\\(' is no regular expression"),
        (("head", 0), "optimizer.rates=.* pairs"),
        (0.5, "optimizer.rates=0.5 must be pairs"),
        (((0, 1),), "optimizer.rates=.* pairs"),
    ],
)
def test_rates_that_cannot_be_meant_are_refused(rates, message):
    with pytest.raises(ValueError, match=message):
        optim.factors(ConfigDict({"rates": rates}), NAMES)


def _adam(**fields):
    """Directions of three gradients."""
    config = base.gradient("subtask1").optimizer
    config.update(fields)
    optimizer, found = optim.direction(config), []
    state = optimizer.init({"kernel": jnp.zeros(2)})
    for gradient in GRADIENTS:
        direction, state = optimizer.update({"kernel": jnp.asarray(gradient)}, state)
        found.append(np.asarray(direction["kernel"]))
    return np.stack(found)


GRADIENTS = np.float32([[1, -2], [0.5, 3], [-4, 0.25]])


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.5, 0.9), (0.0, 0.9)])
def test_adam_has_the_betas_of_the_config(beta1, beta2):
    mean = square = np.zeros(2)
    for t, (gradient, found) in enumerate(zip(GRADIENTS, _adam(beta1=beta1, beta2=beta2), strict=True), 1):  # Kingma & Ba 2015
        mean, square = beta1 * mean + (1 - beta1) * gradient, beta2 * square + (1 - beta2) * gradient**2
        np.testing.assert_allclose(found, mean / (1 - beta1**t) / (np.sqrt(square / (1 - beta2**t)) + 1e-8), rtol=1e-4)


def test_the_default_betas_are_those_of_optax():
    optimizer = optax.scale_by_adam()
    state, found = optimizer.init(jnp.zeros(2)), []
    for gradient in GRADIENTS:
        direction, state = optimizer.update(jnp.asarray(gradient), state)
        found.append(np.asarray(direction))
    np.testing.assert_array_equal(_adam(), np.stack(found))
