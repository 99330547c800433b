"""Backbones: images [N,H,W,C] -> features [N,D]. One file is one family; its `VARIANTS` is the registry.

VARIANTS = {name: {option: value}}     what sets the variant apart
class Backbone(nnx.Module):
    min_size: int                      smallest side of an image, in pixels
    num_features: int                  D
    __init__(*, channels, image_size, rngs, dtype='float32', **options)
    __call__(images, *, train, rngs=None) -> float32 [N,D]

`dtype` (float32 | bfloat16) is that of the arithmetic; parameters, statistics and features are float32. Nets hold no random
state: dropout takes it from the `rngs` of the call.
"""

import importlib
import inspect
import pkgutil
from typing import Any

from flax import nnx

from fingerprint_jax import Config

DTYPES = ("float32", "bfloat16")


def variants() -> dict[str, tuple[Any, dict]]:
    """Every variant: name -> (class, its options)."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, options in getattr(module, "VARIANTS", {}).items():
            found[name] = (module.Backbone, options)
    return found


def build(name: str, *, image_size: tuple[int, int], channels: int = 1, rngs: nnx.Rngs, **options) -> nnx.Module:
    """A variant for images of `image_size` (H, W); `options` go before those of the variant.

    Raises:
        ValueError: an unknown name, option or dtype, or images smaller than the variant takes.
    """
    known = variants()
    if name not in known:
        raise ValueError(f"backbone.name={name!r} is unknown: use one of {', '.join(sorted(known))}")
    backbone, fixed = known[name]
    accepted = set(inspect.signature(backbone.__init__).parameters) - {"self", "channels", "image_size", "rngs"}
    for option in options:
        if option not in accepted:
            raise ValueError(f"backbone.{option} is no option of {name}: use {', '.join(sorted(accepted))}")
    if options.get("dtype", "float32") not in DTYPES:
        raise ValueError(f"backbone.dtype={options['dtype']!r} is unknown: use {' or '.join(DTYPES)}")
    if min(image_size) < backbone.min_size:
        height, width = image_size
        raise ValueError(f"backbone.name={name!r} needs images of {backbone.min_size} pixels a side, not {height}x{width}")
    return backbone(channels=channels, image_size=image_size, rngs=rngs, **(fixed | options))


def from_config(config: Config, image_shape: tuple[int, int, int], rngs: nnx.Rngs) -> nnx.Module:
    """The backbone of `config.backbone` for images of `image_shape` (H, W, C)."""
    options = config.to_dict()
    return build(options.pop("name"), image_size=image_shape[:2], channels=image_shape[2], rngs=rngs, **options)
