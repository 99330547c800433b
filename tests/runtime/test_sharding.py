"""Data parallel is data parallel: on several devices no image and no activation moves between them."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from fingerprint_jax.methods import gradient
from fingerprint_jax.runs.config import network_config
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import sharding
from tests.conftest import ROOT, load_config
from tests.faults import trainer
from tests.test_end_to_end import OF_OBJECTIVES

# The steps of a config of each objective, one that accumulates, and one of which each device has a part of the state, are
# compiled for four devices: {name: {'exchanged': {kind: [how many, bytes]}, 'needed': {what: bytes}}}. Among them is each family of
# backbones: one of no config takes the place of one that was there before. Those of `TRAINED` are trained by the programs, too.
COMPILE = """
    import json, sys
    import jax, numpy as np
    from fingerprint_jax import backbones, methods
    from fingerprint_jax.runs.run import Run
    from fingerprint_jax.training import hlo, inference, inputs
    from fingerprint_jax.training.model import model_of
    from tests.runtime.test_sharding import TRAINED, member

    def size(arrays):
        return sum(x.size * x.dtype.itemsize for x in arrays)

    def figures(config):
        run = Run(config, "nowhere")
        model = model_of(run)
        exchanged = hlo.read(model.step.lower(*inputs.arguments(run)).compile().as_text()).collectives
        images = sum(config.data.streams.values())
        state, groups = model.abstract, config.backbone.get("norm_groups", 1)
        trained = size(model._trained(state["params"]).values())
        without = ("likelihood_ratio", "dclgan", "flow_matching", "gan")  # embeddings
        needed = {
            "parameters": trained,
            "statistics": 2 * groups * size(state["rest"][name] for name in model._statistics),  # forward and backward
            "embeddings": 4 * images * int(np.prod(inference.shapes_of_outputs(run)["embedding"]) + 1),  # and labels
        } if config.objective.name not in without else {"parameters": trained}
        if config.objective.name == "gan":  # its gradients of made and real images and of the penalty are added after the exchange
            needed["discriminator"] = 2 * size(x for name, x in state["params"].items() if not name.startswith("generator/"))
        if config.objective.name == "reidentification":  # of two branches
            needed["embeddings"] *= 2
        if config.objective.name == "cross_attention":  # pairs are compared by tokens, whose gradients come back
            shape = (images, *run.source.image_shape)
            encode = lambda params, rest: model.merge(params, rest).encode(jax.numpy.zeros(shape), train=False)
            needed["embeddings"] = 2 * size(jax.tree.leaves(jax.eval_shape(encode, state["params"], state["rest"])))
        if config.optimizer.shard_state:
            needed["gathered"] = needed["parameters"]
        return {"exchanged": exchanged, "needed": {what: config.optimizer.accumulate * of for what, of in needed.items()}}

    assert jax.device_count() == 4
    data_dir, *paths = sys.argv[1:]
    configs = {path: member(path, data_dir) for path in paths}
    family = lambda name: backbones.variants()[name][0]
    own = {family(name) for config in configs.values() for name in config.backbone.name.split("+")}
    tiny = {family(name): name for name in backbones.variants() if backbones.for_tests(name)}
    others, compiled, found = [tiny[each] for each in tiny if each not in own], set(), {}

    def compiles(path, name, what=""):
        configs[path].backbone.name = name
        compiled.update(map(family, name.split("+")))
        found[f"{path} {name} {what}"] = figures(configs[path])

    for path, config in configs.items():
        name = config.backbone.name
        if config.objective.name == "taozi_experts":
            name = "mlp_tiny+siamese_cnn_tiny"  # sooner than the published three
        elif config.objective.name in TRAINED:
            methods.get("gradient").fit(Run(config, config.objective.name))
        elif others and family(name) in compiled:
            name = others.pop()
        compiles(path, name)
        if config.objective.name == "contrastive":
            config.optimizer.accumulate = 2
            compiles(path, others.pop() if others else name, "in parts")
    softmax = next(path for path, config in configs.items() if config.objective.name == "softmax")
    configs[softmax].optimizer.shard_state = True
    for name in others or [configs[softmax].backbone.name]:
        compiles(softmax, name, "with parts of the state")
    assert compiled >= set(tiny)
    print(json.dumps(found))
"""


TRAINED = {"moco": 1e-5, "canet": 1e-5, "dclgan": 1e-4}  # and how close their losses are; the experts have that of MoCo


def member(path, data_dir):
    """The network of a config, shrunk; what is trained has three steps, and pairs of CANet come in parts."""
    config = network_config(load_config(path))
    config.data_dir = data_dir
    if config.objective.name in TRAINED:
        config.num_steps = 3
    if "pairs" in config:
        config.pairs.candidates = 0
        config.optimizer.accumulate, config.augment.flip = 2, 0.5
    return config


@pytest.fixture(scope="module")
def on_four(data_dir, tmp_path_factory):
    """What was compiled, and the folder of what was trained."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(COMPILE), data_dir, *OF_OBJECTIVES]
    folder = tmp_path_factory.mktemp("four")
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), folder


@pytest.mark.parametrize("name", TRAINED)
def test_four_devices_train_to_the_same_loss(name, on_four, data_dir, tmp_path):
    (path,) = (path for path in OF_OBJECTIVES if network_config(load_config(path)).objective.name == name)
    gradient.fit(Run(member(path, data_dir), tmp_path))
    losses = [[line["loss"] for line in trainer.history(workdir) if "loss" in line] for workdir in (tmp_path, on_four[1] / name)]
    assert len(losses[0]) == 3
    np.testing.assert_allclose(*losses, rtol=TRAINED[name])


def test_only_sums_and_embeddings_are_exchanged(on_four):
    """And these once a step, of one that accumulates on CPU once a part: each objective, each family of backbones."""
    found, _ = on_four
    assert {*OF_OBJECTIVES} == {name.split()[0] for name in found}
    for name, figures in found.items():
        exchanged, needed = figures["exchanged"], figures["needed"]
        assert set(exchanged) <= {"all-reduce", "all-gather", "reduce-scatter"}, (name, exchanged)
        total = sum(size for _, size in exchanged.values())
        assert needed["parameters"] * 0.9 <= total <= 1.1 * sum(needed.values()), (name, exchanged, needed)


def test_rows_of_every_part_are_on_every_device():
    for size, parts, devices in ((24, 1, 4), (24, 3, 1), (24, 3, 4), (16, 2, 2)):
        order = sharding.order(size, parts, devices)
        of_device = order.reshape(devices, parts, -1)
        for device in range(devices):
            for part in range(parts):
                first = part * size // parts + device * size // (parts * devices)
                np.testing.assert_array_equal(of_device[device, part], first + np.arange(size // (parts * devices)))


def test_on_one_device_streams_are_joined_one_after_the_other():
    streams = sharding.Joined([2, 3], sharding.make_mesh())
    a, b = np.float32([[1], [2]]), np.float32([[3], [4], [5]])
    joined = streams.join([a, b])
    assert streams.place is None
    np.testing.assert_array_equal(joined, np.concatenate([a, b]))
    np.testing.assert_array_equal(streams.whole(joined), joined)
    assert sharding.share(sharding.make_mesh(), (8, 2)).is_fully_replicated
    for found, expected in zip(streams.split(joined), (a, b), strict=True):
        np.testing.assert_array_equal(found, expected)


ON_FOUR = """
    import jax, numpy as np
    from fingerprint_jax.runtime import sharding

    mesh = sharding.make_mesh()
    assert mesh.size == 4
    a, b = np.arange(8.0).reshape(8, 1), np.arange(8.0, 12.0).reshape(4, 1)
    streams = sharding.Joined([8, 4], mesh)

    @jax.jit
    def run(a, b):
        joined = streams.join([a, b])
        return joined, streams.split(joined), streams.whole(joined), streams.spread(a[::2])

    joined, parts, whole, spread = run(*(jax.device_put(x, sharding.split(mesh)) for x in (a, b)))
    both = np.concatenate([a, b])
    np.testing.assert_array_equal(joined, both[streams.place])
    for device, shard in enumerate(joined.addressable_shards):
        np.testing.assert_array_equal(shard.data, [*a[2 * device : 2 * device + 2], b[device]])
    for found, expected in zip(parts, (a, b), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.sharding.is_equivalent_to(sharding.split(mesh), 2)
    np.testing.assert_array_equal(whole, both)
    assert whole.sharding.is_fully_replicated
    np.testing.assert_array_equal(spread, a[::2])
    assert spread.sharding.is_equivalent_to(sharding.split(mesh), 2)

    rows = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    with sharding.over(mesh):
        found = jax.jit(lambda x: sharding.by_rows(jax.numpy.fft.rfft, x))(jax.device_put(rows, sharding.split(mesh)))
    np.testing.assert_allclose(found, np.fft.rfft(rows), rtol=1e-5, atol=1e-5)
    assert found.sharding.is_equivalent_to(sharding.split(mesh), 2)
    for shape, part in (((3, 3, 8, 4), (3, 3, 2, 4)), ((3, 5), (3, 5)), ((0, 4), (0, 1)), ((), ())):
        assert sharding.share(mesh, shape).shard_shape(shape) == part
"""


def test_on_four_devices_each_has_its_rows_of_every_stream():
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(ON_FOUR)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
