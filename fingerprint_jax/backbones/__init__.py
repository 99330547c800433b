"""Backbones: images [N,H,W,C] -> features [N,D]. One file is one family; its `VARIANTS` is the registry.

VARIANTS = {name: {option: value}}     what sets the variant apart
class Backbone(nnx.Module):
    min_size: int                      smallest side of an image, in pixels
    num_features: int                  D
    __init__(*, channels, image_size, rngs, dtype='float32', **options)
    maps(images, *, train, rngs=None) -> float32 [N,h,w,C], the last map; ViT: the tokens [N,T,D]
    __call__(images, *, train, rngs=None) -> float32 [N,D], from the last map
TIMM = [(pattern, replacement)]        our paths -> timm's names, where the family has published weights
adapt(path, array, net) -> array       optional: a tensor of a file, in our order of axes, as the net takes it (`adapted`)
translated(tensors) -> tensors         optional: those of a file in another layout under timm's names

`TIMM` holds regular expressions, applied to a path such as `stages/0/1/conv1/kernel` one after the other; pretrained.py turns the
last part and the order of axes into PyTorch's. `build` loads no weights: `pretrained.load` does, once the parameters are there.
Every family takes `norm` and `norm_groups`, where it has batch normalisation; the convolutional ones of ImageNet take `stem`.
`dtype` (float32 | bfloat16) is that of the arithmetic; parameters, statistics and features are float32. Nets hold no random
state: dropout takes it from the `rngs` of the call.
"""

import importlib
import inspect
import pkgutil
import sys
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from fingerprint_jax import Config
from fingerprint_jax.backbones.layers import BatchNorm, Keys
from fingerprint_jax.runtime import names, plugins

DTYPES = ("float32", "bfloat16")
NORMS = ("batch", "frozen")
STEMS = ("imagenet", "native")


class Backbone(Protocol):
    """What a network may call of a backbone, see above."""

    num_features: int

    def maps(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The last map, or the tokens."""
        ...

    def __call__(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [N,D]."""
        ...


def variants() -> dict[str, tuple[Any, dict]]:
    """Every variant: name -> (class, its options)."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, options in getattr(module, "VARIANTS", {}).items():
            found[name] = (module.Backbone, options)
    return found


def for_tests(name: str) -> bool:
    """Whether a variant is `..._tiny`, for tests alone; one that has such a variant itself is not, as convnext_tiny."""
    return name.endswith("_tiny") and f"{name}_tiny" not in variants()


def tiny(name: str) -> str:
    """The variant `<name>_tiny`, else the first `..._tiny` of its family; of several of the first and the last: two are several.

    An unknown name stays, for `build` to refuse.
    """
    if "+" in name:
        several = name.split("+")
        return "+".join(map(tiny, (several[0], several[-1])))
    known = variants()
    if name not in known or f"{name}_tiny" in known:
        return f"{name}_tiny" if name in known else name
    return next(other for other, (backbone, _) in known.items() if backbone is known[name][0] and for_tests(other))


def build(
    name: str,
    *,
    image_size: tuple[int, int],
    channels: int = 1,
    rngs: nnx.Rngs,
    norm: str = "batch",
    norm_groups: int = 1,
    **options: Any,
) -> Backbone:
    """A variant.

    Args:
        name: of the variant, or `package.module:Backbone`, a class.
        image_size: (H, W).
        channels: C.
        rngs: `params` initialises.
        norm: batch, or frozen: training, too, normalises with the running statistics.
        norm_groups: parts of the batch that are normalised each by its own statistics.
        **options: of the family; they go before those of the variant.

    Raises:
        ValueError: an unknown name, option, norm, dtype or stem, or images smaller than the variant takes.
    """
    if plugins.dotted(name):
        backbone, fixed = plugins.find("backbone.name", name), {}
    else:
        known = variants()
        names.check("backbone.name", name, sorted(known))
        backbone, fixed = known[name]
    accepted = set(inspect.signature(backbone.__init__).parameters) - {"self", "channels", "image_size", "rngs"}
    for option in options:
        names.check_option("backbone", option, name, accepted)
    names.check("backbone.norm", norm, NORMS)
    names.check("backbone.dtype", options.get("dtype", "float32"), DTYPES)
    names.check("backbone.stem", options.get("stem", "imagenet"), STEMS)
    if min(image_size) < backbone.min_size:
        height, width = image_size
        raise ValueError(f"backbone.name={name!r} needs images of {backbone.min_size} pixels a side, not {height}x{width}")
    keys = Keys(rngs)
    net = backbone(channels=channels, image_size=image_size, rngs=keys, **(fixed | options))
    keys.close()
    norms = _norms(net)
    if not norms and (norm, norm_groups) != ("batch", 1):
        raise ValueError(f"backbone.norm and backbone.norm_groups: {name} has no batch normalisation")
    for module in norms:
        module.frozen, module.groups = norm == "frozen", norm_groups
    return net


def _norms(net: Any) -> list[BatchNorm]:
    return [module for _, module in nnx.iter_modules(net) if isinstance(module, BatchNorm)]


def from_config(config: Config, image_shape: tuple[int, int, int], rngs: nnx.Rngs) -> Backbone:
    """The backbone of `config.backbone` for images of `image_shape` (H, W, C), as initialised: `weights` are loaded later."""
    options = config.to_dict()
    options.pop("weights", "")  # Model.initial loads them; within the trace they would be constants of the program
    return build(options.pop("name"), image_size=image_shape[:2], channels=image_shape[2], rngs=rngs, **options)


def adapted(path: str, array: np.ndarray, net: Any) -> np.ndarray:
    """An array of a file, or of another network, as a backbone, or the one of several that it is of, takes it: its `adapt`."""
    if isinstance(net, nnx.List):
        number, _, path = path.partition("/")
        net = net[int(number)]
    adapt = getattr(sys.modules[type(net).__module__], "adapt", None)
    return adapt(path, array, net) if adapt else array


def several(config: Config, image_shape: tuple[int, int, int], rngs: nnx.Rngs) -> list[Backbone]:
    """The backbones of a `config.backbone` whose name is several, joined by +; `norm_groups` is of those that have batch norms."""
    groups = config.get("norm_groups", 1)
    found = []
    for name in config.name.split("+"):
        one = type(config)(config.to_dict() | {"name": name, "norm_groups": 1})
        net = from_config(one, image_shape, rngs)
        for module in _norms(net):
            module.groups = groups
        found.append(net)
    return found
