"""The compiled step: what is not finite, parts of a batch, averaged weights, rates and precision."""

import jax
import numpy as np
import pytest

from fingerprint_jax import methods
from fingerprint_jax.data import augment, loader
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import sharding
from fingerprint_jax.training import inference, inputs
from fingerprint_jax.training.model import model_of
from tests.conftest import last_state, same_bytes, tiny_config


@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize("path", ["_unrolled", "_scanned"])
def test_within_a_dispatch_nothing_changes_after_a_step_that_is_not_finite(path, data_dir, tmp_path):
    run = Run(tiny_config(data_dir, "mlp_tiny"), tmp_path)
    model = model_of(run)
    batches = list(loader.host_batches(inputs.sampler_of(run), (data_dir, "subtask2"), 0, 4))
    for batch in batches:
        batch["real"]["image"] = batch["real"]["image"].astype(np.float32)
    several = jax.jit(getattr(model, path), out_shardings=sharding.replicated(model.mesh))
    rest = {}, np.float32(0.01), jax.random.key(1)

    def both(stop):
        state = model.init(jax.random.key(0))
        for batch in batches[:stop]:
            state, last = model.step(state, batch, *rest)
        begin = model.init(jax.random.key(0))
        found, metrics, _ = several(begin, jax.tree.map(lambda *x: np.stack(x), *batches), *rest)
        same_bytes(*(jax.tree.map(np.asarray, jax.device_get(x)) for x in (state, found)))
        return last, metrics

    last, metrics = both(4)
    assert metrics["finite"].tolist() == [True] * 4 and {name: value[-1] for name, value in metrics.items()} == last
    batches[2]["real"]["image"][3, 5, 7] = np.nan
    _, metrics = both(2)
    assert metrics["finite"].tolist() == [True, True, False, False]


def test_pictures_are_of_the_last_step_of_a_dispatch(data_dir, tmp_path, monkeypatch):
    run = Run(tiny_config(data_dir, "mlp_tiny"), tmp_path)
    model = model_of(run)
    monkeypatch.setattr(type(model.objective), "pictures", lambda self, net, images: images, raising=False)
    weights = [jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), part) for part in model.weights(model.abstract)]
    (several,) = loader.host_batches(inputs.sampler_of(run), (data_dir, "subtask2"), 0, 3, per_dispatch=3)
    (last,) = loader.host_batches(inputs.sampler_of(run), (data_dir, "subtask2"), 2, 3)
    found, expected = (model._pictures(*weights, batch, {})["real"] for batch in (several, last))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, last["real"]["image"][: len(found)])


def _one_step(run, data_dir, change=lambda batch: batch, learning_rate=0.01):
    model = model_of(run)
    state = model.init(jax.random.key(0))
    before = jax.tree.map(np.asarray, jax.device_get(state))
    batch = next(loader.host_batches(inputs.sampler_of(run), (data_dir, "subtask2"), 0, 1))
    state, metrics = model.step(state, change(batch), {}, np.float32(learning_rate), jax.random.key(1))
    return before, jax.tree.map(np.asarray, jax.device_get(state)), jax.device_get(metrics)


def test_what_is_not_finite_changes_nothing(data_dir, tmp_path):
    run = Run(tiny_config(data_dir, num_steps=4), tmp_path)

    def nan(batch):
        image = batch["real"]["image"].astype(np.float32)
        image[3, 5, 7] = np.nan  # one pixel
        return batch | {"real": batch["real"] | {"image": image}}

    for options in ({"learning_rate": np.inf}, {"change": nan}):
        before, after, metrics = _one_step(run, data_dir, **options)
        assert not metrics["finite"]
        same_bytes(before, after)
    _, _, metrics = _one_step(run, data_dir)
    assert metrics["finite"]


def test_the_first_array_that_is_not_finite_is_named_parameters_first(data_dir, tmp_path):
    run = Run(tiny_config(data_dir), tmp_path)
    run.config.optimizer.ema_decay = 0.9
    model = model_of(run)
    state = model.init(jax.random.key(0))
    assert model.not_finite(state) == ""
    state["opt"] = jax.tree.map(lambda x: np.nan * x, state["opt"])  # not asked for
    assert model.not_finite(state) == ""
    (mean, *_), (bias, *_) = (
        [name for name in state[part] if name.endswith(end)] for part, end in (("rest", "/mean"), ("params", "bias"))
    )
    for part, name, value in (("ema", mean, np.nan), ("rest", mean, -np.inf), ("params", bias, np.inf)):
        state[part][name] = state[part][name].at[-1].set(value)
        assert model.not_finite(state) == f"{part}/{name}"


def test_accumulated_parts_give_the_gradient_of_the_whole_batch_in_less_memory(data_dir, tmp_path):
    found, memory, loops = [], [], []
    for accumulate in (1, 4):  # without BatchNorm the mean over the parts is the mean over the batch
        run = Run(tiny_config(data_dir, "siamese_cnn_tiny"), tmp_path)
        run.config.optimizer.accumulate, run.config.data.streams.real = accumulate, 32
        found.append(_one_step(run, data_dir)[2])
        model = model_of(run)
        batch = next(loader.host_batches(inputs.sampler_of(run), (data_dir, "subtask2"), 0, 1))
        lowered = model.step.lower(model.abstract, batch, {}, np.float32(0), jax.random.key(0))
        memory.append(lowered.compile().memory_analysis().temp_size_in_bytes)
        loops.append(lowered.as_text().count("stablehlo.while"))
    whole, parts = found
    np.testing.assert_allclose(parts["loss"], whole["loss"], rtol=1e-6)
    np.testing.assert_allclose(parts["grad_norm"], whole["grad_norm"], rtol=1e-5)
    assert memory[1] < 0.5 * memory[0], memory
    assert loops[1] == loops[0] + 1  # a step of one part has no loop around it: convolutions in loops are slow on CPU
    run.config.data.streams.real = 6
    with pytest.raises(ValueError, match="data.streams.real=6 is not a multiple of the 1 devices times optimizer.accumulate=4"):
        methods.get("gradient").fit(run)


def test_batch_norm_sees_the_parts_one_after_the_other(data_dir, tmp_path):
    run = Run(tiny_config(data_dir), tmp_path)
    run.config.optimizer.accumulate, run.config.augment.flip = 2, 0.0
    model = model_of(run)
    before, after, _ = _one_step(run, data_dir)
    batch = next(loader.host_batches(inputs.sampler_of(run), (data_dir, "subtask2"), 0, 1))["real"]
    params, rest = jax.device_put((before["params"], before["rest"]))
    for half in np.split(batch["image"], 2):
        net = model.merge(params, rest)
        images = np.float32(half) / 255
        model.objective.loss(net, {"real": {"image": images, "label": np.zeros(4, np.int32)}}, jax.random.key(0))
        rest = model._split(net)[1]
    for name, value in rest.items():
        np.testing.assert_allclose(after["rest"][name], value, rtol=2e-4, atol=1e-6, err_msg=name)


def test_averaged_weights_follow_the_closed_form_and_are_those_that_predict(data_dir, tmp_path):
    run = Run(tiny_config(data_dir, num_steps=5, checkpoint_every=1, eval_every=1), tmp_path)
    run.config.optimizer.ema_decay = 0.25
    states = []
    methods.get("gradient").fit(run)
    model = model_of(run)
    state = model.init(jax.random.key(run.config.seed))
    sampler, learning_rate = inputs.sampler_of(run), np.float32(run.config.optimizer.learning_rate)
    for batch in loader.host_batches(sampler, (data_dir, "subtask2"), 0, 5):
        states.append(jax.tree.map(np.asarray, jax.device_get(state)))
        state, _ = model.step(state, batch, {}, learning_rate, jax.random.key(run.config.seed + 1))
    states.append(jax.tree.map(np.asarray, jax.device_get(state)))
    same_bytes(states[-1], last_state(run))
    assert any(name.endswith("/var") for name in states[0]["ema"])  # the statistics too
    for name, average in states[-1]["ema"].items():
        values = [(s["params"] | s["rest"])[name].astype(np.float64) for s in states]
        expected = values[0]
        for step, value in enumerate(values[1:]):
            decay = min(0.25, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * value
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-7, err_msg=name)
    rows = run.rows("test_generated")

    def predicted(state):
        return inference.encode(run, jax.device_put(state, sharding.replicated(model_of(run).mesh)), rows)["logits"]

    logits = predicted(states[-1])
    plain = {key: value for key, value in states[-1].items() if key != "ema"}
    swapped = plain | {
        part: states[-1][part] | {k: v for k, v in states[-1]["ema"].items() if k in plain[part]} for part in ("params", "rest")
    }
    np.testing.assert_allclose(logits, predicted(swapped), rtol=1e-6)
    assert not np.allclose(logits, predicted(plain), rtol=1e-3)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32(data_dir, tmp_path):
    run = Run(tiny_config(data_dir, num_steps=2), tmp_path)
    run.config.backbone.dtype = "bfloat16"
    methods.get("gradient").fit(run)
    state = last_state(run)
    assert {str(x.dtype) for x in jax.tree.leaves((state["params"], state["rest"]))} == {"float32"}
    model = model_of(run)
    batch = next(loader.host_batches(inputs.sampler_of(run), (data_dir, "subtask2"), 0, 1))
    text = model.step.lower(model.abstract, batch, {}, np.float32(0), jax.random.key(0)).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert convolutions and all("bf16" in line.rpartition("->")[2] for line in convolutions)


def test_a_factor_scales_the_step_of_its_parameters_and_zero_freezes_them(data_dir, tmp_path):
    def moved(*rates):
        run = Run(tiny_config(data_dir), tmp_path)
        run.config.optimizer.update(name="sgd", weight_decay=0.1, rates=rates)
        before, after, metrics = _one_step(run, data_dir, learning_rate=1.0)
        return {k: after["params"][k] - v for k, v in before["params"].items()}, metrics, after["opt"]

    whole, _, _ = moved()
    part, metrics, moments = moved(("^backbone/stem/", 0.0), ("^backbone/", 0.25))
    for name, change in whole.items():
        factor = 0 if name.startswith("backbone/stem/") else 0.25 if name.startswith("backbone/") else 1
        assert np.any(change), name
        np.testing.assert_allclose(part[name], factor * change, rtol=1e-3, atol=1e-6, err_msg=name)
    assert not any("stem" in jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path((metrics, moments)))


def test_seed_and_learning_rate_share_one_compilation(data_dir, tmp_path):
    first = Run(tiny_config(data_dir, seed=1), tmp_path / "a")
    second = Run(tiny_config(data_dir, seed=2), tmp_path / "b")
    second.config.optimizer.learning_rate = 0.25
    second.config.backbone.weights = "hf://timm/resnet18.a1_in1k"
    assert model_of(first) is model_of(second)
    third = Run(tiny_config(data_dir), tmp_path / "c")
    third.config.optimizer.weight_decay = 0.5
    assert model_of(first) is not model_of(third)


def test_views_average_the_outputs_of_the_changed_images(data_dir, tmp_path):
    plain, seen = Run(tiny_config(data_dir), tmp_path / "a"), Run(tiny_config(data_dir), tmp_path / "b")
    seen.config.views.update(flip=True, shift=1)
    images = plain.source.images(plain.source.rows("test_generated").index[:4])
    views = list(augment.views(images, flip=True, shift=1))
    assert len(views) == 10
    model = model_of(plain)
    weights = model.weights(model.init(jax.random.key(0)))
    parts = [model.outputs(*weights, view) for view in views]
    found = model_of(seen).outputs(*weights, images)
    for name, values in found.items():
        np.testing.assert_allclose(values, np.mean([part[name] for part in parts], axis=0), rtol=1e-4, atol=1e-5, err_msg=name)
    assert not np.allclose(found["logits"], parts[0]["logits"], rtol=1e-3)
