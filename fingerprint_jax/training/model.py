"""A network, its optimizer and its augmentation as compiled functions of plain arrays.

The network is split once into plain dicts of arrays, `params` (what the objective trains) and `rest` (statistics, queues, momentum
copies), keyed by path. The step is a pure function of (state, batch, learning rate, key); seed and learning rate are its
arguments, so that children that differ in nothing else share one compilation.
"""

import functools
import gc
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from fingerprint_jax import Config, backbones, objectives
from fingerprint_jax.backbones import pretrained
from fingerprint_jax.backbones.layers import record
from fingerprint_jax.data import augment
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import distributed, sharding
from fingerprint_jax.training import optim

log = logging.getLogger(__name__)

PICTURES = 4  # images of a stream that `Objective.pictures` is given

# {'step': int32, 'params': {path: array}, 'rest': {path: array}, 'opt': optax state}, and where weights are averaged 'ema':
# {path: array} of the parameters and the BatchNorm statistics.
State = dict


class Model:
    """The compiled functions of one config: `init(key)`, `step(...)`, `steps(...)` and `outputs(params, rest, images, layer)`.

    `step` is (state, batch, cache, learning rate, key) -> state, metrics; `steps` the same of stacked batches [K, ..],
    one after the other in one dispatch, with the metrics of each [K].

    They are compiled for the devices of `mesh`, those that JAX has where it is None.

    `init` draws every parameter; `load` then replaces those of the backbone, `begin` those that another network has too, outside of
    the compiled program.
    """

    def __init__(
        self, config: Config, num_classes: int, image_shape: tuple[int, int, int], mesh: jax.sharding.Mesh | None = None
    ) -> None:
        self.mesh = sharding.make_mesh() if mesh is None else mesh
        self.objective = objectives.build(config, num_classes, image_shape)
        self.objective.mesh = self.mesh
        self._config = config
        self._optimizer = optim.direction(config.optimizer)
        self._schedule = optim.schedule(config.optimizer, config.num_steps)
        # What the arrays of a network lie in, found without computing any.
        self._graph, *parts = nnx.split(nnx.eval_shape(self._build, jax.random.key(0)), self.objective.trainable, ...)
        params, rest = map(nnx.to_flat_state, parts)
        self._paths = {_name(path): path for path, _ in [*params, *rest]}
        self._statistics = [_name(path) for path, variable in rest if isinstance(variable, nnx.BatchStat)]
        self._rates = optim.factors(config.optimizer, [_name(path) for path, _ in params])
        replicated, shapes = sharding.replicated(self.mesh), jax.eval_shape(self._beginning, _arrays(params), _arrays(rest))
        self._shares = config.optimizer.get("shard_state", False)  # runs from before it was a field have none
        # Where the arrays of a state lie, and their shapes and types there.
        self.places = jax.tree.map(lambda _: replicated, shapes)
        if self._shares:
            self.places["opt"] = jax.tree.map(lambda x: sharding.share(self.mesh, x.shape), shapes["opt"])
        self.abstract = jax.tree.map(sharding.abstract, shapes, self.places)
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"  # of the mesh, which need not be of the devices that are here
        self.step = jax.jit(self._step, donate_argnums=0, out_shardings=(self.places, replicated))
        self.trace = self.step.trace  # the same without computing or compiling anything: what it raises is known before a training
        # XLA:CPU is slow at convolutions in a loop, or in anything else that is nested.
        several = self._unrolled if on_cpu else self._scanned
        self._steps = jax.jit(several, donate_argnums=0, out_shardings=(self.places, replicated, replicated))
        self.outputs = jax.jit(self._outputs, static_argnums=3, out_shardings=sharding.readable(self.mesh))
        shows = type(self.objective).pictures is not objectives.Objective.pictures
        self.pictures = jax.jit(self._pictures, out_shardings=replicated) if shows else None

    def _build(self, key: jax.Array) -> nnx.Module:
        return self.objective.build(nnx.Rngs(params=key))

    def _split(self, net: nnx.Module) -> tuple[dict, dict]:
        """`params` and `rest` of a network, arrays by path."""
        _, *parts = nnx.split(net, self.objective.trainable, ...)
        params, rest = (_arrays(nnx.to_flat_state(part)) for part in parts)
        return params, rest

    def merge(self, params: dict, rest: dict) -> nnx.Module:
        """The network around arrays by path."""
        leaves = [(self._paths[name], value) for name, value in (params | rest).items()]
        return nnx.merge(self._graph, nnx.from_flat_state(leaves), copy=True)

    def weights(self, state: State) -> tuple[dict, dict]:
        """`params` and `rest` to predict with: the averaged ones where the config averages."""
        average = state.get("ema", {})
        params, rest = ({name: average.get(name, value) for name, value in state[part].items()} for part in ("params", "rest"))
        return params, rest

    def init(self, key: jax.Array) -> State:
        """A state at step 0; every process draws the whole of it.

        Op by op: XLA would compile one program of all random numbers for longer than the training step.
        """
        data = np.asarray(jax.random.key_data(key).addressable_data(0))
        state = self._beginning(*self._split(self._build(jax.random.wrap_key_data(jnp.asarray(data)))))
        return jax.tree.map(lambda x, place: sharding.put(np.array(x), place), state, self.places)

    def _beginning(self, params: dict, rest: dict) -> State:
        state = {"step": jnp.int32(0), "params": params, "rest": rest, "opt": self._optimizer.init(self._trained(params))}
        return state | self._average(state)

    def load(self, state: State, weights: str) -> State:
        """A state at step 0 with the backbone's parameters and statistics read from `weights`, see backbones/pretrained.py."""
        params, rest = self.pretrained(state, weights)
        state = state | {"params": params, "rest": rest}
        return state | self._average(state)

    def pretrained(self, state: State, weights: str) -> tuple[dict, dict]:
        """`params` and `rest` of a state, concrete or abstract, with those of `weights` in the backbone."""
        net: Any = self.merge(state["params"], state["rest"])
        pretrained.load(weights, self._config.backbone.name, net.backbone)
        params, rest = self._split(net)
        return params, rest

    def begin(self, state: State, known: dict, origin: str) -> State:
        """A state at step 0 with the parameters and BatchNorm statistics of another network, those of the same path and shape.

        Args:
            state: the state.
            known: parameters and statistics of the other by path.
            origin: whose they are, for the log, which names the others.

        Raises ValueError where nothing is taken, or an array of the other is not finite.
        """
        net: Any = self.merge(state["params"], state["rest"])
        known, taken, missing, misshapen = self.objective.begun(known), {}, [], []
        for name, old in self._own(state).items():
            if name not in known:
                missing.append(name)
                continue
            value = np.asarray(jax.device_get(known[name]))
            if not np.isfinite(value).all():
                raise ValueError(f"{origin}: {name} is not finite, nothing can begin with it")
            if name.startswith("backbone/"):
                value = backbones.adapted(name.removeprefix("backbone/"), value, net.backbone)
            if value.shape != old.shape:
                misshapen.append(name)
                continue
            taken[name] = jax.device_put(value.astype(old.dtype), old.sharding)
        unused = sorted(known.keys() - taken.keys() - set(misshapen))
        kept = {"drawn anew": missing, "of another shape": misshapen, "not taken": unused}
        text = "; ".join(f"{what}: {pretrained.some(names)}" for what, names in kept.items() if names)
        if not taken:
            raise ValueError(f"{origin}: the network has no array of the same path and shape; {text}")
        log.info("begins with %s: %d of %d arrays; %s", origin, len(taken), len(self._own(state)), text)
        new = {part: {name: taken.get(name, value) for name, value in state[part].items()} for part in ("params", "rest")}
        state = state | new
        return state | self._average(state)

    def not_finite(self, state: State) -> str:
        """The first array of a state that holds NaN or infinity, parameters first, '' for none; the same on all processes.

        The optimizer's are left out: NaN among them is NaN in the parameters of the same step.
        """
        arrays = {f"{part}/{name}": x for part in ("params", "rest", "ema") for name, x in state.get(part, {}).items()}

        def found() -> str:
            # On the host, where all goes that is saved: on a device it would be a program a shape.
            finite = ((name, np.isfinite(jax.device_get(x.addressable_data(0))).all()) for name, x in arrays.items())
            return next((name for name, good in finite if not good), "")

        return distributed.first(found)

    def _own(self, state: State) -> dict:
        """Parameters and BatchNorm statistics by path."""
        return state["params"] | {name: state["rest"][name] for name in self._statistics}

    def _average(self, state: State) -> State:
        if not self._config.optimizer.ema_decay:
            return {}
        return {"ema": jax.tree.map(jnp.copy, self._own(state))}  # copies: a donated buffer must not be held twice

    def _trained(self, params: dict) -> dict:
        return {name: value for name, value in params.items() if self._rates[name]}

    def _plain(self, stream: dict, cached: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        images = stream["image"] if cached is None else cached[0][stream["index"] - cached[1]]
        return augment.normalize(images, self._config.data.normalize)

    def _images(self, stream: dict, cached: tuple[jax.Array, jax.Array] | None, key: jax.Array) -> dict[str, jax.Array]:
        images, parts, devices = self._plain(stream, cached), self._config.optimizer.accumulate, self.mesh.size
        place = sharding.order(len(images), parts, devices) if parts > 1 and devices > 1 else None
        if not self.objective.two_views:
            return {"image": augment.augment(images, key, place, **self._config.augment)}
        keys = zip(("image", "second"), jax.random.split(key), strict=True)
        return {name: augment.augment(images, view_key, place, **self._config.augment) for name, view_key in keys}

    def steps(self, state: State, batches: dict, cache: dict, learning_rate: jax.Array, key: jax.Array) -> tuple[State, dict]:
        """State and metrics [K] after K steps; from the first that is not finite on the state stays as it was before that."""
        state, metrics, _ = self._steps(state, batches, cache, learning_rate, key)
        return state, metrics

    def _unrolled(
        self, state: State, batches: dict, cache: dict, learning_rate: jax.Array, key: jax.Array
    ) -> tuple[State, dict, list[State]]:
        found, between, go_on = [], [], None
        for i in range(len(jax.tree.leaves(batches)[0])):
            batch = jax.tree.map(lambda x: x[i], batches)  # noqa: B023 - called at once
            state, metrics = self._step(state, batch, cache, learning_rate, key, go_on)
            found.append(metrics)
            between.append(state)
            go_on = metrics["finite"]
        # The states between are results too, which nobody reads: else XLA computes parts of them within the next step once more,
        # rounded otherwise than by single steps.
        return state, jax.tree.map(lambda *x: jnp.stack(x), *found), between[:-1]

    def _scanned(
        self, state: State, batches: dict, cache: dict, learning_rate: jax.Array, key: jax.Array
    ) -> tuple[State, dict, list[State]]:
        def one(carry: tuple[State, jax.Array], batch: dict) -> tuple[tuple[State, jax.Array], dict]:
            state, metrics = self._step(carry[0], batch, cache, learning_rate, key, carry[1])
            return (state, metrics["finite"]), metrics

        (state, _), metrics = jax.lax.scan(one, (state, jnp.bool_(True)), batches)
        return state, metrics, []

    def _step(
        self, state: State, batch: dict, cache: dict, learning_rate: jax.Array, key: jax.Array, go_on: jax.Array | None = None
    ) -> tuple[State, dict]:
        key = jax.random.fold_in(key, state["step"])
        loss_key, *keys = jax.random.split(key, 1 + len(batch))
        batch = {
            name: stream | self._images(stream, cache.get(name), stream_key)
            for (name, stream), stream_key in zip(sorted(batch.items()), keys, strict=True)
        }

        trained = self._trained(state["params"])

        def loss_fn(trained: dict, rest: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, tuple[dict, dict]]:
            net = self.merge(state["params"] | trained, rest)
            loss, metrics = self.objective.loss(net, batch, key)
            return loss, ({"loss": loss, **metrics}, self._split(net)[1])

        def gradient_of(rest: dict, part: tuple[dict, jax.Array]) -> tuple[dict, tuple[dict, dict]]:
            batch, key = part
            with sharding.over(self.mesh):
                (_, (metrics, rest)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(trained, rest, batch, key)
            return rest, (self._shared(gradients), metrics)

        parts = self._config.optimizer.accumulate
        batches = sharding.parts(batch, parts, self.mesh), jax.random.split(loss_key, parts)
        first = jax.tree.map(lambda x: x[0], batches)
        if parts == 1:  # without a loop: XLA:CPU takes ten times as long for convolutions in one, even one that it unrolls
            rest, (gradients, metrics) = gradient_of(state["rest"], first)
        else:  # in a loop only one part's activations are in memory

            def accumulate(
                carry: tuple[dict, tuple[dict, dict]], part: tuple[dict, jax.Array]
            ) -> tuple[tuple[dict, tuple[dict, dict]], None]:
                rest, values = gradient_of(carry[0], part)
                return (rest, jax.tree.map(jnp.add, carry[1], values)), None

            shapes = jax.eval_shape(gradient_of, state["rest"], first)[1]
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            (rest, total), _ = jax.lax.scan(accumulate, (state["rest"], zeros), batches)
            gradients, metrics = jax.tree.map(lambda x: x / parts, total)
        rate = learning_rate * self._schedule(state["step"])
        trained = self._shared(trained)
        direction, opt = self._optimizer.update(gradients, state["opt"], trained)
        factors = {name: self._rates[name] for name in trained}
        moved = jax.tree.map(lambda p, d, factor: p - factor * rate * d, trained, direction, factors)
        if self._shares:  # gathered here, once, for the average too
            moved = jax.lax.with_sharding_constraint(moved, sharding.replicated(self.mesh))
        params = state["params"] | moved
        new = {"step": state["step"] + 1, "params": params, "rest": rest, "opt": opt}
        if "ema" in state:
            # The decay grows from 0.1, so that the first weights are soon forgotten (the rule of TensorFlow's averages).
            decay = jnp.minimum(self._config.optimizer.ema_decay, (1 + state["step"]) / (10 + state["step"]))
            new["ema"] = {name: decay * old + (1 - decay) * (params | rest)[name] for name, old in state["ema"].items()}
        metrics |= {"grad_norm": optax.global_norm(gradients), "learning_rate": rate}
        # A step that is not finite changes nothing; the loop stops when it reads the loss, one dispatch later.
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"]) & jnp.isfinite(rate)
        if go_on is not None:  # nor does a step after it
            finite &= go_on
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state), metrics | {"finite": finite}

    def _shared(self, tree: dict) -> dict:
        """Gradients or parameters as `optimizer.shard_state` has them: each device the part of them that it updates."""
        if not self._shares:
            return tree
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding.share(self.mesh, x.shape)), tree)

    def _outputs(self, params: dict, rest: dict, images: jax.Array, layer: str = "") -> dict:
        images = augment.normalize(images, self._config.data.normalize)
        net: Any = self.merge(params, rest)
        recorded = record(net.backbone, layer) if layer else []
        found = []
        for view in augment.views(images, **self._config.views):
            with sharding.over(self.mesh):
                outputs = self.objective.outputs(net, view)
            if layer:  # the mean over places or tokens, as a backbone's own features are
                if not recorded:
                    raise ValueError(f"features.output={layer!r}: that layer has no one array for an image")
                outputs = {layer: recorded[-1].mean(axis=tuple(range(1, recorded[-1].ndim - 1)), dtype=jnp.float32)}
            found.append(outputs)
        return jax.tree.map(lambda *values: sum(values[1:], values[0]) / len(values), *found)

    def _pictures(self, params: dict, rest: dict, batch: dict, cache: dict) -> dict:
        if any(stream["index"].ndim == 2 for stream in batch.values()):  # of several steps, the last
            batch = jax.tree.map(lambda x: x[-1], batch)
        few = jax.tree.map(lambda x: x[:PICTURES], batch)
        images = {name: self._plain(stream, cache.get(name)) for name, stream in few.items()}
        found = self.objective.pictures(self.merge(params, rest), images)
        return {name: augment.denormalize(shown, self._config.data.normalize) for name, shown in found.items()}


def _arrays(flat: Iterable[tuple[tuple, nnx.Variable]]) -> dict:
    return {_name(path): variable.get_value() for path, variable in flat}


def _name(path: tuple) -> str:
    return "/".join(map(str, path))


def model_of(run: Run, mesh: jax.sharding.Mesh | None = None) -> Model:
    """The compiled functions of a run's config; shared by all runs that differ only in data, seed and learning rate.

    They are for the devices of `mesh`, those that JAX has where it is None.
    """
    c = run.config
    shared = {name: c[name].to_dict() for name in ("backbone", "objective", "optimizer", "augment", "views")}
    shared["optimizer"].pop("learning_rate")
    shared["backbone"].pop("weights", "")
    shared |= {"task": c.task, "num_steps": c.num_steps, "data": {"normalize": c.data.normalize}}
    if c.objective.get("latents") and "pretrain" in c:  # a part of the network
        shared["pretrain"] = {name: c.pretrain[name].to_dict() for name in ("backbone", "objective")}
        shared["pretrain"]["data"] = {"normalize": c.pretrain.data.normalize}
    return _model(json.dumps(shared, sort_keys=True), run.source.num_classes, run.source.image_shape, mesh)


# The members of an ensemble are predicted in turns: where they are of more architectures than this, each would be compiled anew
# in every turn.
@functools.lru_cache(maxsize=32)
def _model(config: str, num_classes: int, image_shape: tuple[int, int, int], mesh: jax.sharding.Mesh | None) -> Model:
    # Built from the text, so that nothing else of a config can enter the compiled step unseen.
    return Model(ConfigDict(json.loads(config)), num_classes, image_shape, mesh)


def forget_many_programs() -> None:
    """Forgets all compiled programs before they are too many: each maps some pages, and past Linux's 65,530 maps XLA crashes."""
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        forget_programs()


def forget_programs() -> None:
    """Forgets all networks and compiled programs."""
    _model.cache_clear()
    jax.clear_caches()
    gc.collect()
