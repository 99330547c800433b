"""What a network is trained for. The file name is the registry; each file has

class Objective(config, num_classes, image_shape):

trainable                        an nnx filter
build(rngs)                      -> nnx.Module that owns everything; its `backbone` is what pretrained weights go into
loss(net, batch, key)            -> scalar, {name: scalar}; images arrive normalised and augmented; may assign to net's state
outputs(net, images)             evaluation mode -> {'logits' | 'embedding': [N, ..]}, of each image alone
scores(net, query, gallery)      outputs of the query, {stream: outputs + label + index} on the host -> [N, K]; query and streams
                                 have a reader too, `images(index)` -> normalised images on the devices
probabilities                    whether scores are probabilities
pictures(net, images)            optional: {stream: a few of its images} -> {name: images}, shown in TensorBoard at each evaluation
two_views                        optional; True: each stream of a batch has `second` too, its images augmented a second time
check(images, batch)             optional; raises ValueError where so many images, `batch` at a time, are not what it can train on
"""

import importlib
import pkgutil

from fingerprint_jax import Config
from fingerprint_jax.runtime import names


def build(config: Config, num_classes: int, image_shape: tuple[int, int, int]):
    """The objective named by `config.objective.name`; raises ValueError with the known names."""
    name = config.objective.name
    names.check("objective.name", name, sorted(module.name for module in pkgutil.iter_modules(__path__)))
    return importlib.import_module(f"{__name__}.{name}").Objective(config, num_classes, image_shape)


def membership_only(config: Config) -> None:
    """Raises ValueError for another task than subtask1."""
    if config.task != "subtask1":
        raise ValueError(f"objective.name={config.objective.name!r} answers membership, not task={config.task!r}: use subtask1")


def no_views(config: Config) -> None:
    """Raises ValueError for `views`, whose mean would be one of embeddings where pairs of them are scored."""
    if config.views.flip or config.views.shift:
        given = f"views.flip={config.views.flip}, views.shift={config.views.shift}"
        raise ValueError(f"{given}: {config.objective.name} has none, use False and 0")
