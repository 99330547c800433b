"""The loop: bit-exact resume, the same samples on any number of devices and processes, and what is not finite."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from fingerprint_jax import methods
from fingerprint_jax.data import loader, tables
from fingerprint_jax.methods import gradient
from fingerprint_jax.runs import checkpoint
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import preemption
from fingerprint_jax.training import inference, inputs, loop
from fingerprint_jax.training.model import model_of
from tests.backbones import test_pretrained
from tests.conftest import ROOT, fit_until, last_state, load_config, same_bytes, tiny_config, untimed


@pytest.mark.parametrize("cache", ["none", "device"])
def test_an_interrupted_training_ends_byte_identical(cache, data_dir, tmp_path):
    def config():
        c = tiny_config(data_dir, num_steps=6)
        c.data.cache, c.augment.shift, c.augment.contrast = cache, 2, 0.2
        return c

    whole = Run(config(), tmp_path / "whole")
    methods.get("gradient").fit(whole)

    halves = Run(config(), tmp_path / "halves")
    fit_until(halves, 6)  # step 5 has been dispatched, step 4 saved
    assert max(checkpoint.Checkpoints(halves.workdir).manifests()) == 4
    methods.get("gradient").fit(halves)
    state = last_state(whole)
    assert any(name.endswith("mean") for name in state["rest"]) and int(state["step"]) == 6
    same_bytes(state, last_state(halves))
    assert _lines(whole) == _lines(halves)


def _lines(run):
    return [untimed(json.loads(line)) for line in open(run.workdir / "metrics.jsonl")]


@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize(
    ("cache", "options"),
    [("device", {"log_every": 2}), ("none", {"data.workers": 1}), ("device", {"accumulate": 2, "ema_decay": 0.5, "flip": 0.5})],
)
def test_several_steps_a_dispatch_end_with_the_bytes_of_single_ones(cache, options, data_dir, tmp_path):
    runs = []
    for count in (1, 2):
        c = tiny_config(
            data_dir, "siamese_cnn_tiny", num_steps=8, eval_every=4, checkpoint_every=4, log_every=options.get("log_every", 1)
        )
        c.steps_per_dispatch, c.data.cache, c.data.workers = count, cache, options.get("data.workers", 0)
        c.optimizer.update(accumulate=options.get("accumulate", 1), ema_decay=options.get("ema_decay", 0.0))
        c.augment.flip = options.get("flip", 0.0)
        runs.append(Run(c, tmp_path / str(count)))
        methods.get("gradient").fit(runs[-1])
    assert model_of(runs[0]) is model_of(runs[1])  # children that differ in it share their compiled step
    same_bytes(*map(last_state, runs))
    lines = [_lines(run) for run in runs]
    assert lines[0] == lines[1] and len([line for line in lines[0] if "loss" in line]) == 8 // c.log_every


@pytest.mark.usefixtures("as_users_compile")
def test_several_steps_a_dispatch_go_on_from_any_step_and_stop_between_dispatches(data_dir, tmp_path, monkeypatch):
    def run(name, count, **fields):
        c = tiny_config(data_dir, "siamese_cnn_tiny", num_steps=8, eval_every=8, checkpoint_every=8, log_every=1)
        c.steps_per_dispatch = count
        c.update(fields)
        return Run(c, tmp_path / name)

    whole, parts = run("whole", 1), run("parts", 1)
    methods.get("gradient").fit(whole)
    sizes = []

    def stopped(run, at):
        """Trains until a signal comes while the dispatch that begins at step `at` runs."""
        model = model_of(run)
        with monkeypatch.context() as patch:
            for name in ("step", "steps"):
                compiled = getattr(model, name)

                def seen(state, batch, *rest, compiled=compiled):
                    sizes.append(len(batch["real"]["index"]) if batch["real"]["index"].ndim == 2 else 0)
                    if int(state["step"]) == at:
                        os.kill(os.getpid(), signal.SIGTERM)
                    return compiled(state, batch, *rest)

                patch.setattr(model, name, seen)
            with pytest.raises(preemption.Preempted):
                methods.get("gradient").fit(run)

    stopped(parts, 0)
    assert max(checkpoint.Checkpoints(parts.workdir).manifests()) == 1
    stopped(run("parts", 4), 1)
    assert max(checkpoint.Checkpoints(parts.workdir).manifests()) == 4 and sizes == [0, 3]
    methods.get("gradient").fit(run("parts", 4))
    same_bytes(last_state(whole), last_state(parts))
    assert _lines(whole) == _lines(parts)
    assert [start["topology"].rpartition(", ")[2] for start in parts.provenance["starts"]][1:] == ["4 steps a dispatch"] * 2


def test_input_wait_is_the_time_in_which_the_devices_had_nothing_to_do(data_dir, tmp_path, monkeypatch):
    waits = {}
    for running in (False, True):
        real_read = loader.to_devices

        def slow(*args, real_read=real_read, **kwargs):
            for batch in real_read(*args, **kwargs):
                time.sleep(0.05)
                yield batch

        config = tiny_config(data_dir, "mlp_tiny", num_steps=8, eval_every=8, checkpoint_every=8, log_every=1)
        run = Run(config, tmp_path / str(running))
        with monkeypatch.context() as patch:
            patch.setattr(loader, "to_devices", slow)
            if running:  # as if the steps took longer than the reading
                patch.setattr(type(jax.numpy.zeros(1)), "is_ready", lambda array: False)
            methods.get("gradient").fit(run)
        lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").open()]
        waits[running] = [line["input_wait"] for line in lines if "input_wait" in line]
    assert np.median(waits[False][1:-1]) > 0.5 and not any(waits[True][1:])


def test_a_signal_during_the_last_step_is_not_lost(data_dir, tmp_path, monkeypatch):
    preemption.stop_at_once()
    run = Run(tiny_config(data_dir, "mlp_tiny", num_steps=2), tmp_path)
    model = model_of(run)
    compiled = model.step

    def signalled(state, *rest):
        if int(state["step"]) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return compiled(state, *rest)

    monkeypatch.setattr(model, "step", signalled)
    with pytest.raises(preemption.Preempted, match="SIGTERM: the same command continues the run"):
        methods.get("gradient").fit(run)
    assert max(checkpoint.Checkpoints(tmp_path).manifests()) == 2 and not (tmp_path / "done").exists()
    methods.get("gradient").fit(run)
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(("best", "sign"), [("max:accuracy", 1), ("min:accuracy", -1)])
def test_patience_ends_a_training_that_gets_no_better(best, sign, data_dir, tmp_path, monkeypatch):
    figures = dict(enumerate((0.2, 0.5, 0.5, 0.4, 0.9, 0.1, 0.1, 0.1, 0.1), 1))  # 3 is not better than 2, 4 neither; 5 is not seen

    real = loop.train

    def train(run, evaluate, origin=None):
        real(run, lambda state: {"accuracy": sign * figures[int(state["step"])]}, origin)

    def begun(name):
        c = tiny_config(data_dir, "mlp_tiny", num_steps=9, eval_every=1, checkpoint_every=1)
        c.data.valid, c.best, c.patience = 0.25, best, 2
        return Run(c, tmp_path / name)

    monkeypatch.setattr(loop, "train", train)
    whole, halves = begun("whole"), begun("halves")
    methods.fit(whole)
    assert (whole.steps, whole.best_step, whole.done) == (4, 3, True)  # of equal ones the later checkpoint
    assert not methods.unfinished(whole, methods.state(whole)) and methods.steps(whole) == [4]
    after = Run(tiny_config(data_dir, "mlp_tiny", init_from=str(whole.workdir)), tmp_path / "after")
    after.config.data.valid = 0.25
    monkeypatch.setattr(gradient.cost, "here", lambda run: [])  # which compiles
    assert dict(gradient.describe(after))["begins with"] == f"{whole.workdir}, 4 steps on subtask2"

    fit_until(halves, 4)
    assert not halves.done and max(checkpoint.Checkpoints(halves.workdir).manifests()) == 3
    methods.fit(halves)
    same_bytes(last_state(whole), last_state(halves))
    (halves.workdir / "done").unlink()  # as a kill behind the last save leaves it
    methods.fit(halves)
    assert halves.steps == 4
    halves.config.patience = 4
    halves.allow_change = ("patience",)
    methods.fit(halves)  # two more without a better one, were it not for the fifth
    assert halves.steps == 9 and halves.best_step == 5
    # A copy that lacks its end does not call itself whole by its own word.
    halves.config.patience = 0
    (halves.workdir / "done").write_text('{"steps": 4, "best": 3}')
    assert halves.steps == 9


def test_patience_wants_a_figure_that_gets_better(data_dir, tmp_path):
    c = tiny_config(data_dir, "mlp_tiny")
    c.best, c.patience = "", 3
    with pytest.raises(ValueError, match="patience=3: name the figure of `valid` that is to get better, best='max:accuracy'"):
        methods.check(Run(c, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_step_that_is_not_finite_is_named_by_its_own_number(data_dir, tmp_path, monkeypatch):
    run = Run(tiny_config(data_dir, "mlp_tiny", num_steps=8, eval_every=4, checkpoint_every=4, steps_per_dispatch=4), tmp_path)
    run.config.data.cache = "none"
    real_read = loader.host_batches

    def damaged(*args, **kwargs):
        for i, batch in enumerate(real_read(*args, **kwargs)):
            image = batch["real"]["image"].astype(np.float32)
            image[1 if i == 1 else slice(0), 3] = np.nan  # the second step of the second dispatch
            yield batch | {"real": batch["real"] | {"image": image}}

    monkeypatch.setattr(loader, "host_batches", damaged)
    ids = loop._ids(run.streams["real"], inputs.sampler_of(run)(5)["real"]["index"])
    with pytest.raises(FloatingPointError, match=f"step 6 is not finite .*; its images: {', '.join(ids)};"):
        methods.get("gradient").fit(run)
    assert max(checkpoint.Checkpoints(tmp_path).manifests()) == 4


def test_intervals_that_a_dispatch_does_not_divide_are_named_before_anything_is_written(data_dir, tmp_path):
    for fields, text in (
        ({"eval_every": 6}, "eval_every=6 is not a multiple of steps_per_dispatch=4"),
        ({"num_steps": 10}, "num_steps=10 is not a multiple"),
        ({"steps_per_dispatch": 0}, "steps_per_dispatch=0: use 1 or more"),
    ):
        config = tiny_config(data_dir, num_steps=8, eval_every=4, checkpoint_every=4, steps_per_dispatch=4)
        config.update(fields)
        with pytest.raises(ValueError, match=text):
            methods.get("gradient").fit(Run(config, tmp_path / "run"))
        assert not (tmp_path / "run" / "config.json").exists()


def test_images_of_two_splits_train_alike_from_the_disk_and_from_the_device(data_dir, tmp_path):
    states = []
    for cache in ("none", "device"):
        config = load_config("configs/quickstart.py")
        config.data_dir, config.data.cache = data_dir, cache
        ids = Run(config, tmp_path).rows("test_generated").ids
        tables.write_extra_labels(tmp_path / "extra.csv", "test_generated", ids[3:9], np.arange(6) % 5)
        config.data.extra_labels = str(tmp_path / "extra.csv")
        run = Run(config, tmp_path / cache)
        methods.get("gradient").fit(run)
        states.append(last_state(run))
        # Rows are looked up by their record numbers, which must be in order.
        rows = inputs.sampler_of(run).rows["generated"]
        assert len(rows) == 6 + len(run.rows("train_generated"))
        np.testing.assert_array_equal(loop._ids(rows, rows.index[::-1]), rows.ids[::-1])
    same_bytes(*states)


def test_processes_read_the_blocks_of_one_global_batch_after_any_restart(data_dir, tmp_path):
    run = Run(tiny_config(data_dir), tmp_path)
    sampler, key = inputs.sampler_of(run), (data_dir, "subtask2")
    whole = list(loader.host_batches(sampler, key, 0, 7))
    for start in (0, 3, 6):
        halves = [loader.host_batches(sampler, key, start, 7, process_index=p, process_count=2) for p in (0, 1)]
        for batch, *parts in zip(whole[start:], *halves, strict=True):
            for stream, content in batch.items():
                for name, value in content.items():
                    np.testing.assert_array_equal(value, np.concatenate([part[stream][name] for part in parts]))


def test_reader_processes_change_nothing(data_dir, tmp_path):
    sampler = inputs.sampler_of(Run(tiny_config(data_dir), tmp_path))
    plain = list(loader.host_batches(sampler, (data_dir, "subtask2"), 0, 3))
    workers = list(loader.host_batches(sampler, (data_dir, "subtask2"), 0, 3, workers=1))
    for a, b in zip(plain, workers, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_eight_devices_train_on_the_same_samples_to_the_same_loss(data_dir, tmp_path):
    """Also where each holds a part of the optimizer's state, which any number of devices goes on from and to."""
    config = tiny_config(data_dir, "siamese_cnn_tiny", num_steps=4, checkpoint_every=2, log_every=1)
    methods.get("gradient").fit(Run(config, tmp_path / "one"))
    fit_until(Run(config, tmp_path / "moved"), 4)  # step 2 is saved
    script = textwrap.dedent(
        f"""
        import jax
        from fingerprint_jax import methods
        from fingerprint_jax.runs.run import Run
        from fingerprint_jax.training.model import model_of
        assert jax.device_count() == 8
        config = Run.load({str(tmp_path / "one")!r}).config
        config.steps_per_dispatch = 2
        for name in ("eight", "shared", "moved"):
            config.optimizer.shard_state = name != "eight"
            methods.get("gradient").fit(Run(config, {str(tmp_path)!r} + "/" + name))
        for x in jax.tree.leaves(model_of(Run(config, "nowhere")).abstract["opt"]):
            divides = any(size % 8 == 0 for size in x.shape)
            assert x.size == (8 if divides else 1) * jax.numpy.prod(jax.numpy.array(x.sharding.shard_shape(x.shape))), x
        """
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"})
    names = ("one", "eight", "shared", "moved")
    lines = {name: [json.loads(line) for line in open(tmp_path / name / "metrics.jsonl")] for name in names}
    losses = {name: [line["loss"] for line in part if "loss" in line] for name, part in lines.items()}
    assert len(losses["one"]) == 4
    for name in names[1:]:
        np.testing.assert_allclose(losses["one"], losses[name], rtol=1e-5)
    states = [last_state(Run.load(tmp_path / name)) for name in ("eight", "shared")]
    for part, least in (("params", 1.0), ("opt", 0.0)):  # of a bias, zero at first, the last digits are rounding
        for a, b in zip(*(jax.tree.leaves(state[part]) for state in states), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * max(least, np.abs(b).max()))
    starts = Run.load(tmp_path / "moved").provenance["starts"]
    assert [start["topology"].rpartition(", ")[2] for start in starts][1:] == ["sharded optimizer state"]


def test_folds_hold_the_same_records_on_the_device_so_that_they_share_a_compiled_step(data_dir, tmp_path):
    found = []
    for fold in (-1, 0, 1, 2):
        config = load_config("configs/quickstart.py")
        config.data_dir, config.data.folds, config.data.fold = data_dir, 3, fold
        run = Run(config, tmp_path)
        sampler = inputs.sampler_of(run)
        found.append(inputs.spans(run, sampler))
        (begin, end), index = found[-1]["generated"], sampler.rows["generated"].index
        assert begin <= index.min() and index.max() < end
    assert found == [{"generated": run.source.span("train_generated")}] * 4


def test_a_batch_the_devices_do_not_divide_names_both(data_dir, tmp_path, monkeypatch):
    run = Run(tiny_config(data_dir), tmp_path)

    class Three:
        size = 3

    monkeypatch.setattr(model_of(run), "mesh", Three())
    with pytest.raises(ValueError, match="data.streams.real=8 is not a multiple of the 3 devices"):
        methods.get("gradient").fit(run)


def test_a_training_that_is_not_finite_stops_and_keeps_the_checkpoint_before(data_dir, tmp_path):
    config = tiny_config(data_dir, num_steps=6)
    whole = Run(config, tmp_path / "run")
    methods.get("gradient").fit(whole)
    kept = last_state(whole)
    config.num_steps, config.optimizer.learning_rate = 9, 1e30
    allowed = Run(config, tmp_path / "run", allow_change=("num_steps", "optimizer.learning_rate"))
    with pytest.raises(FloatingPointError, match=r"step 8 is not finite .*t1/\d+"):
        methods.get("gradient").fit(allowed)
    assert max(checkpoint.Checkpoints(tmp_path / "run").manifests()) == 6
    same_bytes(kept, last_state(allowed))


def test_parameters_that_the_last_step_ruined_are_not_saved(data_dir, tmp_path):
    # Its loss and gradients are those of the parameters before it, and finite.
    config = tiny_config(data_dir, num_steps=4)
    config.optimizer.update(weight_decay=1e-4, ema_decay=0.5)
    allowed = ("num_steps", "optimizer.learning_rate", "optimizer.weight_decay")
    begun = Run(config, tmp_path / "run", allow_change=allowed)
    methods.get("gradient").fit(begun)
    kept, rate = last_state(begun), config.optimizer.learning_rate
    config.num_steps, config.optimizer.learning_rate, config.optimizer.weight_decay = 5, 1e38, 1e10
    with pytest.raises(FloatingPointError, match=r"after step 5 params/\S+/kernel is not finite; this is not saved, .*[^\n]*$"):
        methods.get("gradient").fit(begun)
    assert max(checkpoint.Checkpoints(tmp_path / "run").manifests()) == 4 and not begun.done
    same_bytes(kept, last_state(begun))
    config.optimizer.learning_rate, config.optimizer.weight_decay = rate, 1e-4
    methods.get("gradient").fit(begun)
    assert int(last_state(begun)["step"]) == 5 and begun.done


def test_weights_that_are_not_finite_leave_no_run_without_steps_either(data_dir, tmp_path):
    tensors = test_pretrained.tensors("resnet_tiny", (48, 48))
    tensors["bn1.running_mean"][1] = np.nan
    save_file(tensors, tmp_path / "weights.safetensors")
    config = tiny_config(data_dir, num_steps=0, best="")
    config.backbone.update(weights=str(tmp_path / "weights.safetensors"), stem="imagenet")
    with pytest.raises(ValueError, match="^backbone.weights='.*/weights.safetensors': not finite: bn1.running_mean; "):
        methods.get("gradient").fit(Run(config, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_pretrained_weights_begin_the_training_and_a_resume_needs_them_no_more(data_dir, tmp_path):
    tensors = test_pretrained.tensors("resnet_tiny", (48, 48))
    save_file(tensors, tmp_path / "weights.safetensors")

    def config(num_steps):
        c = tiny_config(data_dir, num_steps=num_steps, best="")
        c.backbone.update(weights=str(tmp_path / "weights.safetensors"), stem="imagenet", norm="frozen")
        c.optimizer.update(rates=(("^backbone/", 0.0),), ema_decay=0.5)
        return c

    run = Run(config(2), tmp_path / "run")
    methods.get("gradient").fit(run)
    (tmp_path / "weights.safetensors").unlink()
    run = Run(config(4), tmp_path / "run", allow_change=("num_steps",))
    methods.get("gradient").fit(run)
    state = last_state(run)
    assert int(state["step"]) == 4
    kernel = tensors["layer1.0.conv1.weight"].transpose(2, 3, 1, 0)
    for part in ("params", "ema"):
        np.testing.assert_allclose(state[part]["backbone/stages/0/0/conv1/kernel"], kernel, rtol=1e-6)
    np.testing.assert_array_equal(state["rest"]["backbone/stem/norm/mean"], tensors["bn1.running_mean"])
    drawn = model_of(run).init(jax.random.key(run.config.seed))["params"]
    assert not np.array_equal(state["params"]["head/kernel"], drawn["head/kernel"])


@pytest.mark.parametrize("pretrained", [False, True])
def test_no_steps_keep_the_network_as_it_begins(pretrained, data_dir, tmp_path, monkeypatch):
    config = tiny_config(data_dir, num_steps=0)
    assert config.best == "max:accuracy"
    if pretrained:
        save_file(test_pretrained.tensors("resnet_tiny", (48, 48)), tmp_path / "weights.safetensors")
        config.backbone.update(weights=str(tmp_path / "weights.safetensors"), stem="imagenet")
    run = Run(config, tmp_path / "run")
    methods.get("gradient").fit(run)
    assert list(checkpoint.Checkpoints(run.workdir).manifests()) == [0] and methods.get("gradient").state(run) == 0
    model = model_of(run)
    begin = model.init(jax.random.key(config.seed))
    if pretrained:
        begin = model.load(begin, config.backbone.weights)
    begin = jax.tree.map(np.asarray, jax.device_get(begin))
    same_bytes(begin, last_state(run))
    predictions = methods.predict(run, "heldout")
    valid = run.rows("valid")
    accuracy = (methods.predict(run, "valid").scores.argmax(axis=1) == valid.labels).mean()
    (line,) = map(json.loads, (run.workdir / "metrics.jsonl").open())
    assert line["step"] == 0 and line["valid_accuracy"] == pytest.approx(accuracy)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", None)
        methods.get("gradient").fit(run)  # done
    (run.workdir / "done").unlink()  # as after a kill between the save and the mark
    methods.get("gradient").fit(run)
    assert (run.workdir / "done").exists() and len((run.workdir / "metrics.jsonl").read_text().splitlines()) == 1
    same_bytes(begin, last_state(run))
    np.testing.assert_array_equal(methods.predict(Run.load(run.workdir, "0"), "heldout").scores, predictions.scores)
    more = Run(tiny_config(data_dir, num_steps=2), run.workdir, allow_change=("num_steps",))
    more.config.backbone = config.backbone
    methods.get("gradient").fit(more)
    assert int(last_state(more)["step"]) == 2


def test_weights_that_do_not_fit_leave_no_run_behind(data_dir, tmp_path):
    config = tiny_config(data_dir)
    for weights, text in ((tmp_path / "no.safetensors", "no such file"), ("pip:efficientnet_lite0", "not 'resnet_tiny'")):
        config.backbone.weights = str(weights)
        with pytest.raises((ValueError, OSError), match=text):
            methods.get("gradient").fit(Run(config, tmp_path / "run"))
        assert not (tmp_path / "run" / "config.json").exists()
    save_file(test_pretrained.tensors("vit_tiny"), tmp_path / "vit.safetensors")
    config.backbone.weights = str(tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match="does not fit backbone.name='resnet_tiny'; it lacks: .*; it has more: blocks.0"):
        methods.get("gradient").fit(Run(config, tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_prediction_does_not_depend_on_the_batch(data_dir, tmp_path):
    run = Run(tiny_config(data_dir), tmp_path)
    methods.get("gradient").fit(run)
    rows = run.rows("test_generated")
    _, state = inference.restore(run)
    whole = inference.encode(run, state, rows)
    run.config.eval_batch = 7  # 20 rows: a padded tail
    part = inference.encode(run, state, rows)
    assert len(part["logits"]) == len(rows) == 20
    np.testing.assert_allclose(whole["logits"], part["logits"], rtol=1e-4, atol=1e-5)
