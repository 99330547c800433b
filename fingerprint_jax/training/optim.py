"""The optimizer as a direction and a learning rate, both inside the compiled step; the peak rate is its argument."""

import re
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import optax

from fingerprint_jax import Config
from fingerprint_jax.runtime import names


def direction(config: Config) -> optax.GradientTransformation:
    """Gradients -> the direction that the learning rate scales, weight decay included."""
    parts = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    names.check("optimizer.name", config.name, ("adam", "sgd"))
    if config.name == "adam":
        parts.append(optax.scale_by_adam(config.beta1, config.beta2))
    else:
        parts.append(optax.trace(decay=0.9))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=_kernels))
    return optax.chain(*parts)


def factors(config: Config, paths: Iterable[str]) -> dict[str, float]:
    """Parameters by path -> the factor of their learning rate by `rates`: that of the first pattern found in the path, else 1.

    Raises ValueError for a pattern that is found in no path, or where every parameter is frozen.
    """
    paths = sorted(paths)
    pairs = config.rates if isinstance(config.rates, (tuple, list)) else [config.rates]
    if any(not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str) for pair in pairs):
        raise ValueError(f"optimizer.rates={config.rates!r} must be pairs, for example (('^backbone/', 0.1),)")
    for pattern, _ in config.rates:
        try:
            found = any(re.search(pattern, name) for name in paths)
        except re.error as error:
            raise ValueError(f"optimizer.rates: {pattern!r} is no regular expression: {error}") from error
        if not found:
            raise ValueError(f"optimizer.rates: {pattern!r} is found in no parameter's path, such as {paths[0]} or {paths[-1]}")
    found = {name: next((factor for pattern, factor in config.rates if re.search(pattern, name)), 1.0) for name in paths}
    if not any(found.values()):
        raise ValueError("optimizer.rates freezes every parameter")
    return found


def _kernels(params: dict) -> dict:
    # Biases and normalisation scales are not decayed (Loshchilov & Hutter 2019, as the published code of most networks does).
    return {name: name.endswith("kernel") for name in params}


def schedule(config: Config, num_steps: int) -> Callable[[jax.Array], jax.Array]:
    """Step -> share of the peak learning rate in [0, 1]: linear warm-up, then constant, cosine to zero, or step by step."""
    names.check("optimizer.schedule", config.schedule, ("constant", "cosine", "step"))

    def share(step: jax.Array) -> jax.Array:
        warm = jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
        if config.schedule == "constant":
            return warm
        if config.schedule == "step":
            return warm * config.drop ** (step * config.drops // num_steps)
        progress = (step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1)
        return warm * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))

    return share
