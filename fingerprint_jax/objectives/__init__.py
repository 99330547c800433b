"""What a network is trained for. The file name is the registry; each file has a class `Objective`, made of the one here."""

import contextlib
import importlib
import pkgutil
from collections.abc import Generator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from fingerprint_jax import Config
from fingerprint_jax.backbones.layers import placed
from fingerprint_jax.data import tasks
from fingerprint_jax.runtime import names, plugins, sharding

Batch = dict[str, dict[str, jax.Array]]  # {stream: {image, label, index, and with two views second}}


class Objective:
    """A network, its loss, and the scores that follow from what it says.

    Args:
        config: of the run, whose options are in `config.objective`; raises ValueError for one that cannot be.
        num_classes: of the task.
        image_shape: (H, W, C).
    """

    trainable: Any = nnx.Param  # an nnx filter
    probabilities = False  # whether scores are probabilities
    mesh: Mesh | None = None  # of the devices that the loss is computed on, set by `Model`; None: all that JAX has
    two_views = False  # True: each stream of a batch has `second` too, its images augmented a second time
    of_patients = False  # True: its stream is of pairs of images of one patient, whose number is their label

    def __init__(self, config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        self.config, self.num_classes, self.image_shape = config, num_classes, image_shape
        self.task = tasks.of(config.task)

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The module that owns everything; its `backbone` is what pretrained weights go into."""
        raise NotImplementedError

    def loss(self, net: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """A scalar, and {name: scalar}; images arrive normalised and augmented. It may assign to the state of the net."""
        raise NotImplementedError

    @contextlib.contextmanager
    def joined(self, batch: Batch, *names: str) -> Generator[sharding.Joined]:
        """How the streams of a batch, all of them or those named, go through a network together, within this context.

        On several devices the rows of what is joined are in another order than on one; what happens to an image is the same for
        all that (`layers.placed`).
        """
        sizes = [len(batch[name]["image"]) for name in names or batch]
        streams = sharding.Joined(sizes, self.mesh or sharding.make_mesh())
        with placed(streams.place):
            yield streams

    def outputs(self, net: Any, images: jax.Array) -> dict[str, jax.Array]:
        """In evaluation mode {'logits' | 'embedding': [N, ..]}, of each image alone."""
        raise NotImplementedError

    def scores(self, net: Any, query: dict, gallery: dict) -> np.ndarray:
        """Scores [N,K] of the outputs of a query, given {stream: outputs + label + index} on the host.

        Query and streams have a reader too, `images(index)` -> normalised images on the devices.
        """
        raise NotImplementedError

    def check(self, images: int, batch: int) -> None:
        """Raises ValueError where so many images, `batch` at a time, are not what it can train on."""

    def begun(self, known: dict[str, Any]) -> dict[str, Any]:
        """The arrays of the network that a run begins with, by the paths that they have in this one; here the same."""
        return known

    def pictures(self, net: Any, images: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """{stream: a few of its images} -> {name: images}, shown in TensorBoard at each evaluation."""
        return {}

    @staticmethod
    def smoke(options: Any) -> None:
        """Shrinks `config.objective` for FILE:smoke."""


class Generative(Objective):
    """A network that makes images out of normal noise, -1..1 (`data.normalize='symmetric'`), and learns those of one stream.

    Attributes:
        steps: from noise to image, where nobody says how many.
        solvers: the ways to take them, the first where nobody says which.
    """

    steps = 1
    solvers: tuple[str, ...] = ()  # none: in one step

    def __init__(self, config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(config, num_classes, image_shape)
        if config.data.normalize != "symmetric":
            given = f"data.normalize={config.data.normalize!r}"
            raise ValueError(f"{given}: the images of {config.objective.name} are -1..1, use symmetric")

    def only(self, batch: Batch) -> dict[str, jax.Array]:
        """The one stream of a batch; raises ValueError where there are several."""
        if len(batch) != 1:
            name = self.config.objective.name
            raise ValueError(f"data.streams={sorted(batch)}: {name} learns one set of images, name one stream")
        return next(iter(batch.values()))

    @classmethod
    def way(cls, steps: int, solver: str) -> tuple[int, str]:
        """Steps and solver as given, or those of nobody's saying for 0 and ''; raises ValueError for others than there are."""
        if cls.solvers:
            names.check("solver", solver or cls.solvers[0], cls.solvers)
            return steps or cls.steps, solver or cls.solvers[0]
        if solver or steps not in (0, cls.steps):
            name = cls.__module__.rpartition(".")[2]
            raise ValueError(f"{f'solver={solver}' if solver else f'steps={steps}'}: {name} makes images in one step, give none")
        return cls.steps, ""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the noise of an image."""
        raise NotImplementedError

    def advance(self, net: Any, x: jax.Array, t: jax.Array, dt: jax.Array, labels: jax.Array, solver: str) -> jax.Array:
        """One step on the way from noise, at time 0, to images, at time 1.

        Args:
            net: the network.
            x: at time t, first the noise [N, *noise_shape], at last what `images` are made of.
            t: the time.
            dt: the length of the step.
            labels: [N], -1 for none.
            solver: one of `solvers`.

        Returns:
            x at t + dt.
        """
        raise NotImplementedError

    def images(self, net: Any, x: jax.Array) -> jax.Array:
        """The images [N,H,W,C] of what is there at time 1; here the same."""
        return x

    def known(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """How well it knows each image, larger for those it was trained on, from its `outputs` on the host: [N]."""
        raise NotImplementedError

    def scores(self, net: Any, query: dict, gallery: dict) -> np.ndarray:
        """`known` [N,1]; raises ValueError for a task that does not ask for membership."""
        membership_only(self.config)
        return self.known(query)[:, None]


def of(name: str) -> type[Objective]:
    """The class of `config.objective.name`, which may be `package.module:Class`; raises ValueError with the known names."""
    if plugins.dotted(name):
        return plugins.find("objective.name", name)
    names.check("objective.name", name, sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg))
    return importlib.import_module(f"{__name__}.{name}").Objective


def build(config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> Objective:
    """The objective that a config names."""
    return of(config.objective.name)(config, num_classes, image_shape)


def membership_only(config: Config) -> None:
    """Raises ValueError for a task that does not ask for membership."""
    if not tasks.of(config.task).membership:
        raise ValueError(f"objective.name={config.objective.name!r} answers membership, not task={config.task!r}: use subtask1")


def no_views(config: Config) -> None:
    """Raises ValueError for `views`, whose mean would be one of embeddings where pairs of them are scored."""
    if config.views.flip or config.views.shift:
        given = f"views.flip={config.views.flip}, views.shift={config.views.shift}"
        raise ValueError(f"{given}: {config.objective.name} has none, use False and 0")
