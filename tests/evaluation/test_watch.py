"""Following a training from beside it."""

import json
import re
import shutil

import numpy as np
import pytest

from fingerprint_jax import methods
from fingerprint_jax.data import packing
from fingerprint_jax.evaluation import lineage, score, watch
from fingerprint_jax.runs.checkpoint import Checkpoints
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import files
from fingerprint_jax.runtime.preemption import Preempted
from tests.conftest import fit, load_config
from tests.faults import trainer
from tests.foreign import tree


@pytest.fixture
def finished(data_dir, tmp_path):
    """A run of four saves, of which the training keeps two."""
    config = load_config("configs/quickstart.py")
    config.data_dir, config.num_steps, config.checkpoint_every, config.best = data_dir, 8, 2, ""
    methods.get("gradient").fit(Run(config, tmp_path / "run"))
    return tmp_path / "run"


def test_it_keeps_its_own_best_while_the_training_removes(finished, monkeypatch):
    scores = {6: 0.9, 8: 0.3}
    real = score.evaluate

    def scored(run, split):
        results = real(run, split)
        results["metrics"]["accuracy"] = scores[int(run.step)]
        return results

    best = watch.watch(finished, "valid", 5, scored)
    assert best.workdir == finished / "watch-valid" and trainer.saved(best.workdir) == [6]
    lines = [json.loads(line) for line in (best.workdir / "metrics.jsonl").open()]
    assert [(line["step"], line["accuracy"]) for line in lines] == [(6, 0.9), (8, 0.3)]
    assert trainer.state(best.workdir) == trainer.state(finished, "6")
    np.testing.assert_array_equal(
        methods.predict(best, "heldout").scores, methods.predict(Run.load(finished, "6"), "heldout").scores
    )
    shutil.copytree(best.workdir, finished / "renamed")
    monkeypatch.chdir(best.workdir)
    for place in (best.workdir, finished / "renamed", "."):  # whatever it is called, it was chosen by that split
        assert methods.load(place).followed == "valid"
    monkeypatch.chdir(finished.parent)
    shutil.rmtree(finished / "checkpoints")  # the copy does not need the run
    score.evaluate(Run.load(best.workdir), "valid")
    with (best.workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "accu')  # a kill cut it
    watch.watch(finished, "valid", 5, scored)  # nothing is scored twice
    assert len((best.workdir / "metrics.jsonl").read_text().splitlines()) == 2


def test_what_a_killed_watch_had_not_scored_is_never_its_best(finished, data_dir):
    """A copy without a figure of the watched split has none: that of the training is of another split, or other data."""
    for step in Checkpoints(finished).manifests():
        manifest = json.loads((path := finished / "digests" / f"{step}.json").read_text())
        manifest.pop("sha256")
        manifest["metrics"] = {"accuracy": 1.0}
        path.write_text(json.dumps(manifest | {"sha256": files.seal(manifest)}))

    def killed(run, split):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch.watch(finished, "valid", 5, killed)
    (first,) = trainer.saved(finished / "watch-valid")
    for name in (f"digests/{first}.json", f"checkpoints/{first}"):  # retention
        path = finished / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    best = watch.watch(finished, "valid", 5, lambda run, split: {"metrics": {"accuracy": 0.5}})
    assert trainer.saved(best.workdir) == [8] and first == 6


def test_figures_of_the_other_data_that_have_chosen_a_checkpoint_say_so(finished, data_dir, phantoms, tmp_path):
    images = shutil.copytree(phantoms["subtask2"], tmp_path / "images")

    def pack(name, *test, fewer=False):
        for path in [min((images / "train" / "generated" / "gen_t1").iterdir())] * fewer:
            path.unlink()
        packing.pack("subtask2", tmp_path / name, images / "train", *test)
        return str(tmp_path / name)

    def notes(data, split):
        return lineage.in_sample(methods.load(copy.workdir, data_dir=data), split)

    other = pack("other", images / "test", fewer=True)
    copy = watch.watch(finished, "train_generated", 5, score.evaluate, other)
    count = len(copy.rows("train_generated"))
    chosen = f"{count} of these {count} images have chosen the checkpoint: the figures are too good."
    for data in (other, pack("less")):  # the same images, with another split beside them
        assert chosen in notes(data, "train_generated")
        assert not any("chosen" in note for note in notes(data, "train_real"))
    unknown = "Whether any of these .* images have chosen the checkpoint, by --watch on other data, is not known."
    assert any(re.fullmatch(unknown, note) for note in notes(pack("third", fewer=True), "train_generated"))
    own = methods.load(copy.workdir)
    assert not any(what.startswith("chose") for _, what, _ in methods.sources(own))
    with pytest.raises(ValueError, match=f"{copy.workdir} was chosen on other data than {data_dir}: give those as --data_dir"):
        watch.watch(finished, "train_generated", 5, score.evaluate)
    watch.watch(finished, "train_generated", 5, score.evaluate, other)


def test_the_first_steps_are_scored_though_the_training_removes_them(data_dir, tmp_path):
    process = trainer.start(data_dir, tmp_path / "run", "--config.data.valid=0.2")
    while not trainer.saved(tmp_path / "run"):
        assert process.poll() is None, process.stderr.read()
    best = watch.watch(tmp_path / "run", "valid", 60, score.evaluate)
    _, text = process.communicate()
    assert process.returncode == 0, text
    lines = [json.loads(line) for line in (best.workdir / "metrics.jsonl").open()]
    assert lines[-1]["step"] == trainer.STEPS and lines == sorted(lines, key=lambda line: line["step"])
    top = max(line["accuracy"] for line in lines)
    assert trainer.saved(best.workdir) == [max(line["step"] for line in lines if line["accuracy"] == top)]


def test_a_run_of_no_steps_has_one_checkpoint(data_dir, tmp_path):
    config = load_config("configs/quickstart.py")
    config.data_dir, config.num_steps = data_dir, 0
    methods.get("gradient").fit(Run(config, tmp_path / "run"))
    best = watch.watch(tmp_path / "run", "valid", 5, score.evaluate)
    assert trainer.saved(best.workdir) == [0]


def test_a_dead_training_ends_the_watch_that_was_killed_at_its_start(finished, monkeypatch):
    write_text = watch.files.write_text

    def killed(path, text):
        write_text(path, text)
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.files, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        watch.watch(finished, "valid", 1, score.evaluate)
    monkeypatch.undo()
    assert sorted(path.name for path in (finished / "watch-valid").iterdir()) == ["lock", "provenance.json"]
    (finished / "done").unlink()
    with pytest.raises(Preempted, match="no new checkpoint for 0 s, and it is not done; the same command goes on"):
        watch.watch(finished, "valid", 0.01, score.evaluate)


def test_a_run_that_was_trained_where_copies_lie_is_left_alone(finished):
    copy = watch.watch(finished, "valid", 5, score.evaluate)
    with pytest.raises(ValueError, match=f"{copy.workdir} is a copy that --watch keeps, it is not trained: use another --workdir"):
        methods.fit(Run(copy.config, copy.workdir))
    shutil.rmtree(copy.workdir)
    methods.fit(Run(copy.config, copy.workdir))
    before = tree(copy.workdir)
    with pytest.raises(ValueError, match=f"{copy.workdir} is a run that was trained there, no copy of {finished}: move it away"):
        watch.watch(finished, "valid", 5, score.evaluate)
    assert tree(copy.workdir) == before
    with pytest.raises(ValueError, match="--watch=nan: expected seconds"):
        watch.watch(finished, "valid", float("nan"), score.evaluate)


def test_a_training_that_goes_on_with_another_fold_is_followed_with_its_notice(data_dir, tmp_path, monkeypatch):
    config = load_config("configs/quickstart.py")
    config.data_dir, config.num_steps, config.best, config.data.valid, config.data.folds = data_dir, 2, "", 0.2, 3
    config.data.fold = 0
    methods.fit(Run(config, tmp_path / "run"))
    (tmp_path / "run" / "done").unlink()

    def goes_on(_):
        config.num_steps, config.data.fold = 4, 1
        methods.fit(Run(config, tmp_path / "run", allow_change=("num_steps", "data.fold")))

    monkeypatch.setattr(watch.time, "sleep", goes_on)
    monkeypatch.setattr(score, "evaluate", lambda run, split: {"metrics": {"accuracy": int(run.step) / 10}})
    copy = watch.watch(tmp_path / "run", "valid", 60, score.evaluate)
    assert trainer.saved(copy.workdir) == [4] and copy.config.data.fold == 1
    assert [change["field"] for change in copy.provenance["changes"]] == ["data.fold", "num_steps"]
    assert any(note.startswith("data.fold changed in mid-training") for note in lineage.in_sample(copy, "heldout"))


def test_two_watch_no_run_at_once(finished):
    (finished / "watch-valid").mkdir()
    with files.locked(finished / "watch-valid" / "lock"), pytest.raises(ValueError, match="watches this run on the same split"):
        watch.watch(finished, "valid", 5, score.evaluate)
    assert watch.watch(finished, "valid", 5, score.evaluate).workdir == finished / "watch-valid"


def test_what_cannot_be_watched_is_named(finished, data_dir, tmp_path):
    with pytest.raises(ValueError, match="the labels of test_generated are unknown"):
        watch.watch(finished, "test_generated", 1, score.evaluate)
    ensemble = fit("configs/subtask2/siamese_vote.py", data_dir, tmp_path / "vote")
    with pytest.raises(ValueError, match="a run of the method ensemble"):
        watch.watch(ensemble.workdir, "valid", 1, score.evaluate)
    for split in ("heldout", "heldout:1"):
        with pytest.raises(ValueError, match="`heldout` has a say in nothing: use valid"):
            watch.watch(finished, split, 1, score.evaluate)


def test_it_writes_through_no_link_and_copies_no_device(finished, tmp_path, monkeypatch):
    target = tmp_path / "mine"
    target.write_text("mine")
    (finished / "watch-valid").mkdir()
    (finished / "watch-valid" / "config.json").symlink_to(target)
    with pytest.raises(ValueError, match="config.json is a link"):
        watch.watch(finished, "valid", 1, score.evaluate)
    assert target.read_text() == "mine"
    theirs = Checkpoints(finished)
    step = max(theirs.manifests())
    monkeypatch.setattr(shutil, "copyfile", lambda *_, **__: pytest.fail("copied without end"))
    for name in ("x", "._x"):  # the second as a Mac would call it
        (finished / "checkpoints" / str(step) / name).symlink_to("/dev/zero")
        assert not Checkpoints(tmp_path / "home").adopt(theirs, step)
        (finished / "checkpoints" / str(step) / name).unlink()
    home = tmp_path / "home" / "checkpoints"
    home.mkdir(parents=True)
    (home / str(step)).symlink_to(tmp_path / "theirs")
    with pytest.raises(ValueError, match=f"checkpoints/{step} cannot be removed, and nothing is written through a link"):
        Checkpoints(tmp_path / "home").adopt(theirs, step)
    (home / str(step)).unlink()
    monkeypatch.undo()
    (finished / "checkpoints" / str(step) / "._y").write_text("of a Mac")
    assert Checkpoints(tmp_path / "home").adopt(theirs, step)
    assert not list((tmp_path / "home").rglob("._y"))


def test_a_copy_with_links_and_a_checkpoint_with_more_than_its_files_are_not_used(finished, tmp_path, caplog):
    (tmp_path / "mine").mkdir()
    (finished / "watch-valid").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="watch-valid is a link, and nothing is written through one"):
        watch.watch(finished, "valid", 5, score.evaluate)
    (finished / "watch-valid").unlink()
    (finished / "watch-valid").mkdir()
    (tmp_path / "keys").write_text("my keys")
    (finished / "watch-valid" / "config.json").symlink_to(tmp_path / "keys")
    with pytest.raises(ValueError, match="watch-valid/config.json is a link, and nothing is written through one"):
        watch.watch(finished, "valid", 5, score.evaluate)
    assert (tmp_path / "keys").read_text() == "my keys" and not list((tmp_path / "mine").iterdir())
    (finished / "watch-valid" / "config.json").unlink()
    (finished / "checkpoints" / "6" / "more").symlink_to(tmp_path / "mine")
    (tmp_path / "mine" / "without end").write_text("x")
    best = watch.watch(finished, "valid", 5, score.evaluate)
    assert trainer.saved(best.workdir) == [8] and "6/more is not part of the checkpoint" in caplog.text
