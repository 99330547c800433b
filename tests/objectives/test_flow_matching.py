"""The loss and the scores against numpy, and the solvers where the velocity, and so what they end in, is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fingerprint_jax import methods
from fingerprint_jax.data import augment
from fingerprint_jax.evaluation import score
from fingerprint_jax.evaluation.lineage import in_sample
from fingerprint_jax.objectives.flow_matching import SOLVERS, Objective, errors, euler, heun
from fingerprint_jax.runs.run import Run
from fingerprint_jax.training import inference
from fingerprint_jax.training.model import model_of
from fingerprint_jax.training.sampling import Sampler, noise, sample
from tests.conftest import drawn, last_state, load_config

CONFIG = "configs/generators/flow.py"
SHAPE = (5, 4, 1)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (6, *SHAPE)).astype(np.float32)
LABELS = np.arange(6) % 3


def _objective(task="images", normalize="symmetric", backbone="unet_tiny", **options):
    config = load_config(CONFIG)
    config.task, config.data.normalize, config.backbone.name = task, normalize, backbone
    if backbone == "unet_tiny":
        config.backbone.attended = 1
    config.objective.update(options)
    return Objective(config, 3, SHAPE)


def _gaussian(mean, deviation):
    """The velocity where data are normal: E[x - z | x_t] of independent x and z."""

    def velocity(x, t):
        variance = (1 - t) ** 2 + (t * deviation) ** 2
        return mean + (t * deviation**2 - (1 - t)) / variance * (x - t * mean)

    return velocity


def _end(solver, steps, x=1.5, mean=0.3, deviation=0.5):
    step = functools.partial(SOLVERS[solver], _gaussian(mean, deviation))
    with jax.enable_x64(True):
        return float(sample(step, jnp.float64(x), steps))


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_normal_data_come_out_with_their_mean_and_deviation(solver):
    """The exact flow takes z to mean + deviation z: it keeps the quantiles."""
    for x in (-1.0, 0.0, 2.0):
        np.testing.assert_allclose(_end(solver, 400, x), 0.3 + 0.5 * x, atol=0.01 if solver == "euler" else 1e-4)
    z = noise(jax.random.key(0), np.arange(4000), (1,))
    found = sample(functools.partial(SOLVERS[solver], _gaussian(0.3, 0.5)), z, 50)
    np.testing.assert_allclose([found.mean(), found.std()], [0.3, 0.5], atol=0.03)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_falls_as_the_order_of_the_solver(solver, order):
    wrong = [abs(_end(solver, steps) - (0.3 + 0.5 * 1.5)) for steps in (40, 80, 160)]
    np.testing.assert_allclose(np.log2(np.divide(wrong[:-1], wrong[1:])), order, atol=0.15)


def test_a_step_by_hand():
    def velocity(x, t):
        return 2 * x + t

    assert euler(velocity, 1.0, 0.5, 0.25) == 1 + 0.25 * 2.5
    assert heun(velocity, 1.0, 0.5, 0.25) == 1 + 0.125 * (2.5 + (2 * 1.625 + 0.75))


def test_errors_at_both_ends_and_in_between():
    """A network that gives back what it sees: noise at time 0, the image at time 1."""
    z = np.random.default_rng(1).normal(size=IMAGES.shape).astype(np.float32)
    seen = []

    def net(x, t, labels, *, train):
        seen.append((t, labels, train))
        return x

    for t, x in ((0.0, z), (1.0, IMAGES), (0.25, 0.75 * z + 0.25 * IMAGES)):
        found = errors(net, IMAGES, z, jnp.full(6, t), LABELS)
        np.testing.assert_allclose(found, np.mean((x - (IMAGES - z)) ** 2, axis=(1, 2, 3)), rtol=1e-5)
    assert not seen[0][2] and (seen[0][1] == LABELS).all()


def test_the_loss_is_the_mean_error_at_logit_normal_times_and_some_images_lose_their_label():
    seen = {}

    def net(x, t, labels, *, train):
        seen.update(t=t, labels=labels, train=train)
        return jnp.zeros_like(x)

    many = {"image": jnp.zeros((4000, *SHAPE)), "label": jnp.ones(4000, int)}
    objective = _objective(time_mean=0.4, time_deviation=0.7, conditional=True, label_dropout=0.25)
    loss, _ = objective.loss(net, {"train": many}, jax.random.key(0))
    logits = np.log(seen["t"] / (1 - seen["t"]))
    np.testing.assert_allclose([logits.mean(), logits.std()], [0.4, 0.7], atol=0.04)
    np.testing.assert_allclose(loss, 1, atol=0.02)  # of black images the velocity is minus the noise
    assert seen["train"] and set(np.unique(seen["labels"])) == {-1, 1}
    np.testing.assert_allclose((seen["labels"] == -1).mean(), 0.25, atol=0.03)
    _objective(conditional=False).loss(net, {"train": many}, jax.random.key(0))
    assert set(np.unique(seen["labels"])) == {1}  # which such a network does not look at


def test_outputs_are_the_errors_of_each_image_alone_at_every_time():
    objective = _objective("subtask1", times=(0.0, 0.5, 0.75), noise_seed=7)

    def net(x, t, labels, *, train):
        assert not train and (labels == -1).all()
        return x * t[:, None, None, None]

    z = np.asarray(jax.random.normal(jax.random.key(7), (3, *SHAPE)))
    expected = [
        np.mean((t * ((1 - t) * z[k] + t * IMAGES) - (IMAGES - z[k])) ** 2, axis=(1, 2, 3)) for k, t in enumerate((0, 0.5, 0.75))
    ]
    outputs = jax.device_get(objective.outputs(net, jnp.asarray(IMAGES)))
    np.testing.assert_allclose(outputs["error"], np.stack(expected, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(objective.outputs(net, jnp.asarray(IMAGES[4:]))["error"], outputs["error"][4:])
    np.testing.assert_allclose(objective.scores(None, outputs, {})[:, 0], -np.mean(expected, axis=0), rtol=1e-5)


def test_the_network_begins_at_zero_and_sees_time_and_label():
    graph, state = nnx.split(_objective(conditional=True).build(nnx.Rngs(params=0)))

    @jax.jit
    def run(state, images, time, labels):
        return nnx.merge(graph, state, copy=True)(images, time, labels, train=False)

    time, same = jnp.linspace(0.1, 0.9, 6), jnp.broadcast_to(IMAGES[:1], IMAGES.shape)
    np.testing.assert_array_equal(run(state, IMAGES, time, LABELS), np.zeros_like(IMAGES))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), state)
    assert np.ptp(run(state, same, time, jnp.zeros(6, int)), axis=0).max() > 0.01
    labelled = run(state, same, jnp.full(6, 0.5), jnp.array([0, 1, 2, -1, 0, 1]))
    np.testing.assert_allclose(labelled[:2], labelled[4:], rtol=1e-4, atol=1e-5)
    assert min(np.abs(labelled[i] - labelled[k]).max() for i in range(4) for k in range(i)) > 0.01
    bare = nnx.eval_shape(lambda: _objective().build(nnx.Rngs(params=0)))
    assert bare.classes is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"normalize": "unit"}, "data.normalize='unit': the images of flow_matching are -1..1, use symmetric"),
        ({"times": ()}, r"objective.times=\(\): use at least one"),
        ({"backbone": "vit_tiny"}, "backbone.name='vit_tiny' makes no map of the size of an image: use unet_small"),
    ],
)
def test_what_cannot_be_is_one_line(options, text):
    with pytest.raises(ValueError, match=text):
        _objective(**options).build(nnx.Rngs(params=0))


def test_a_second_stream_and_another_question_are_refused():
    stream = {"image": IMAGES, "label": LABELS}
    with pytest.raises(ValueError, match=r"data.streams=\['a', 'b'\]: flow_matching learns one set of images, name one stream"):
        _objective().loss(None, {"a": stream, "b": stream}, jax.random.key(0))
    for task in ("images", "subtask2"):
        with pytest.raises(ValueError, match=f"'flow_matching' answers membership, not task='{task}': use subtask1"):
            _objective(task).scores(None, {"error": np.ones((2, 3))}, {})


def test_of_subtask_1_it_learns_the_used_images_alone_and_says_so(data_dir, tmp_path):
    config = load_config(CONFIG, "members")
    config.backbone.name, config.objective.times, config.eval_batch = "unet_tiny", (0.5,), 20
    run = drawn(config, data_dir, tmp_path / "run")
    assert set(run.streams["real:1"].labels) == {1}
    assert methods.reads(config, "train_real") and not methods.reads(config, "test_real")
    results = score.evaluate(run, "train_real")
    assert results["n"] == 40 and results["metrics"]["scores"]["auc"] >= 0 and in_sample(run, "train_real")
    assert "was trained on the labels of 20 of these 40 images" in results["metrics"]["permutation"]["reason"]


LATENT = "configs/generators/latent.py"


def _of_latents(**fields):
    config = load_config(LATENT)
    config.update_from_flattened_dict(fields)
    return Objective(config, 3, (16, 16, 1))


def test_a_generator_of_latents_keeps_the_autoencoder_that_was_trained_before_it(data_dir, tmp_path):
    config = load_config(LATENT)
    config.data_dir = data_dir
    methods.fit(run := Run(config, tmp_path / "run"))
    (child,) = (tmp_path / "run" / "children").iterdir()
    before = model_of(Run.load(child)).weights(inference.restore(Run.load(child))[1])
    state = last_state(run)
    for part, known in zip(("params", "rest"), before, strict=True):
        for name, value in known.items():
            np.testing.assert_array_equal(state[part][f"codec/{name}"], value, err_msg=name)
    assert set(state["rest"]) == {f"codec/{name}" for name in before[1]}
    # Its images are what the autoencoder makes of the latents at the end of the flow.
    sampler, model, objective = Sampler(run, 0, 2, "euler"), model_of(run), model_of(run).objective
    made = np.asarray(sampler(np.arange(2), np.full(2, -1)))

    @jax.jit
    def by_hand(params, rest):
        net = model.merge(params, rest)
        x = noise(jax.random.key(0), np.arange(2), objective.noise_shape)
        for t in (0.0, 0.5):
            x = euler(lambda x, t: net(x, t, np.full(2, -1), train=False), x, np.full(2, t, np.float32), 0.5)
        return augment.denormalize(net.codec.decode(x), "symmetric")[..., 0]

    expected = by_hand(*model.weights(inference.restore(run)[1]))
    assert made.shape == (2, 48, 48) and np.abs(made.astype(int) - expected).max() <= 1


def test_the_loss_and_the_errors_are_those_of_the_latents():
    objective = _of_latents()
    assert objective.noise_shape == (2, 2, 4)
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (5, 16, 16, 1)), jnp.float32)
    (t,) = objective.config.objective.times

    @jax.jit
    def both(images):
        net = objective.build(nnx.Rngs(0))
        net.last.kernel.set_value(net.last.kernel[...] + 0.1)  # which begins at zero
        latents = net.codec.encode(images)
        z = jax.random.normal(jax.random.key(objective.config.objective.noise_seed), (1, 2, 2, 4))
        expected = errors(net, latents, jnp.broadcast_to(z, latents.shape), jnp.full(5, t), jnp.full(5, -1))
        return objective.outputs(net, images)["error"][:, 0], expected

    np.testing.assert_allclose(*both(images), rtol=1e-5)


def test_what_a_generator_of_latents_needs_is_named(data_dir, tmp_path):
    for fields, said in (
        ({"pretrain.objective.name": "softmax"}, "pretrain must be an autoencoder with objective.latent_map"),
        ({"pretrain.objective.latent_map": 0}, "pretrain must be an autoencoder with objective.latent_map"),
        ({"optimizer.rates": ()}, r"the autoencoder stays as it is, give optimizer.rates=\(\('codec/\*', 0.0\),\)"),
    ):
        with pytest.raises(ValueError, match=said):
            _of_latents(**fields)
    config = load_config(LATENT)
    config.data_dir, config.pretrain.num_steps = data_dir, 0
    with pytest.raises(ValueError, match="the autoencoder has to be trained first, set pretrain.num_steps"):
        methods.fit(Run(config, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
