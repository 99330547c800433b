"""What trackers are told of a run; MLflow and Weights & Biases by what they have written themselves."""

import importlib.util
import json
import logging
import math
import re
import shutil
import threading

import pytest

from fingerprint_jax import evaluate, methods
from fingerprint_jax.runs import start
from fingerprint_jax.runs.config import flat_config
from fingerprint_jax.runs.run import Run
from fingerprint_jax.training import trackers
from tests.conftest import fit_until, last_state, same_bytes, tiny_config, untimed
from tests.test_evaluate import run_binary


class Fake:
    """Keeps what it is told, one list a start."""

    told: dict[str, list] = {}

    def __init__(self, run):
        self.said = self.told.setdefault(str(run.workdir), [])

    def metrics(self, step, values):
        self.said.append((step, dict(values)))

    def end(self, finished):
        self.said.append(finished)


class Broken(Fake):
    def metrics(self, step, values):
        raise RuntimeError("no network\nand a page of why")


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    monkeypatch.setattr(Fake, "told", {})
    monkeypatch.setitem(trackers.KNOWN, "fake", Fake)
    monkeypatch.setitem(trackers.KNOWN, "broken", Broken)


def _config(data_dir):
    return tiny_config(data_dir, "siamese_cnn_tiny", num_steps=6, checkpoint_every=2, eval_every=2, log_every=1)


def _told(run):
    """The lines of metrics.jsonl as a tracker has them: {step: values}, without what is a time."""
    found = {}
    for line in map(json.loads, (run.workdir / "metrics.jsonl").open()):
        found.setdefault(line["step"], {}).update({name: v for name, v in untimed(line).items() if name != "step"})
    return found


def test_a_tracker_has_the_lines_of_the_run_and_a_broken_one_ends_nothing(data_dir, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fingerprint_jax"), "propagate", True)
    methods.fit(plain := Run(_config(data_dir), tmp_path / "plain"))
    run = Run(_config(data_dir), tmp_path / "run", trackers=("broken", "fake"))
    fit_until(run, 6)  # step 4 is saved
    assert Fake.told[str(run.workdir)][-1] is False
    methods.fit(run)
    said = Fake.told[str(run.workdir)]
    assert said[-1] is True and said.count(True) == 1
    found = {}
    for step, values in (each for each in said if isinstance(each, tuple)):
        found.setdefault(step, {}).update(untimed(values))
    assert found == _told(run) == _told(plain)
    same_bytes(last_state(run), last_state(plain))
    warnings = [record.getMessage() for record in caplog.records if "takes no more figures" in record.getMessage()]
    text = f"{run.workdir}: broken takes no more figures, all else goes on: no network"
    assert warnings == [text] * 2  # one a start


def test_a_tracker_that_hangs_is_left(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fingerprint_jax"), "propagate", True)
    monkeypatch.setattr(trackers, "WAIT_S", 0.05)
    held = threading.Event()
    monkeypatch.setattr(Fake, "metrics", lambda *_: held.wait())
    run = Run(tiny_config("nowhere"), tmp_path / "run")
    tracker = trackers.begin(run, ("fake",))
    tracker.metrics(1, {"loss": 1.0})
    tracker.end(True)
    assert "fake has not taken all figures" in caplog.text
    held.set()


def test_process_0_alone_has_a_tracker(tmp_path, monkeypatch):
    monkeypatch.setattr("fingerprint_jax.runtime.distributed.index", lambda: 1)
    tracker = trackers.begin(Run(tiny_config("nowhere"), tmp_path / "run"), ("fake",))
    tracker.metrics(1, {"loss": 1.0})
    tracker.end(True)
    assert not Fake.told


def test_children_have_the_trackers_of_their_run_and_its_name(tmp_path):
    run = Run(tiny_config("nowhere"), tmp_path / "outer", trackers=("fake",))
    child = run.child("fold0", run.config, seed=0, fold=0)
    shared = child.shared("pretrain", run.config, 0)
    assert [each.trackers for each in (child, shared)] == [("fake",)] * 2
    assert [trackers._name(each) for each in (run, child)] == ["outer", "outer/children/fold0"]
    assert trackers._name(shared).startswith("outer/children/pretrain-")


def test_the_flag_names_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else real(name))
    with pytest.raises(
        ValueError, match=re.escape("--trackers=mlflow: the package is not installed: pip install 'fingerprint_jax[mlflow]'")
    ):
        trackers.check(["mlflow"])
    (tmp_path / "fake").mkdir()  # as `wandb/` of a run in the folder that the command is started in
    with pytest.raises(ValueError, match="--trackers=fake: the package is not installed"):
        trackers.check(["fake"])
    with pytest.raises(ValueError, match="--trackers='wandv' is unknown: did you mean 'wandb'"):
        trackers.check(["wandv"])
    (tmp_path / "fake" / "__init__.py").write_text("")
    importlib.invalidate_caches()
    assert trackers.check(["fake", "fake"]) == ("fake",)


def test_a_copy_a_moved_run_another_place_and_a_strange_id_begin_anew(tmp_path):
    run = Run(tiny_config("nowhere"), tmp_path / "run")
    assert trackers._known(run, "fake", "here") == ""
    trackers._keep(run, "fake", "here", "abc-1")
    assert trackers._known(run, "fake", "here") == "abc-1" and trackers._known(run, "fake", "there") == ""
    shutil.copytree(run.workdir, tmp_path / "copy")
    assert trackers._known(Run(run.config, tmp_path / "copy"), "fake", "here") == ""
    for strange in ("../../x", "", "a" * 65):
        trackers._keep(run, "fake", "here", strange)
        assert trackers._known(run, "fake", "here") == ""
    path = tmp_path / "run" / "trackers" / "fake.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="fake.json cannot be used"):
        trackers._known(run, "fake", "here")
    path.unlink()
    path.symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="fake.json is a link"):
        trackers._known(run, "fake", "here")


def _figures(workdir, split):
    """Accuracy, kappa and AUC of a split with their intervals, from results.json."""
    metrics = json.loads((workdir / "results.json").read_text())["splits"][split]["metrics"]
    found = {f"{split}_{name}": metrics[name] for name in ("accuracy", "cohen_kappa")}
    for name in ("accuracy", "cohen_kappa"):
        low, high = metrics["intervals"][name]
        found |= {f"{split}_{name}_low": low, f"{split}_{name}_high": high}
    if "auc" in metrics.get("scores", {}):
        low, high = metrics["scores"]["auc_interval"]
        found |= {f"{split}_auc": metrics["scores"]["auc"], f"{split}_auc_low": low, f"{split}_auc_high": high}
    return {name: value for name, value in found.items() if value is not None}


def test_evaluate_tells_the_figures_of_the_split(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.setattr(trackers, "check", tuple)
    run_binary(evaluate, f"--workdir={tmp_path / 'run'}", "--trackers=fake")
    (step, values), end = Fake.told[str(tmp_path / "run")]
    assert values == _figures(tmp_path / "run", "heldout") and {"heldout_accuracy", "heldout_cohen_kappa"} <= values.keys()
    assert step == json.loads((trained / "done").read_text())["best"] and end is True


@pytest.fixture
def shown(data_dir, tmp_path, monkeypatch, request):
    """A run that was stopped, went on and was scored, as (run, name of the tracker)."""
    pytest.importorskip(request.param, reason=f"pip install 'fingerprint_jax[{request.param}]'")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)
    run = Run(_config(data_dir), tmp_path / "run", trackers=(request.param,))
    fit_until(run, 6)
    stopped = json.loads((run.workdir / "trackers" / f"{request.param}.json").read_text())
    methods.fit(run)
    run_binary(evaluate, f"--workdir={run.workdir}", f"--trackers={request.param}")
    assert json.loads((run.workdir / "trackers" / f"{request.param}.json").read_text()) == stopped
    start.refuse_foreign(run.workdir)
    Run.load(run.workdir).refuse_links()
    return run


def _expected(run):
    """{(step, name): value} of the lines of metrics.jsonl and of the figures of the split."""
    values = _told(run)
    values[json.loads((run.workdir / "done").read_text())["best"]] |= _figures(run.workdir, "heldout")
    return {(step, name): value for step, found in values.items() for name, value in found.items()}


@pytest.mark.parametrize("shown", ["mlflow"], indirect=True)
def test_mlflow_shows_one_run_with_config_and_figures(shown):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{shown.workdir / 'mlruns' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("run")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params == {name: str(value) for name, value in flat_config(shown.config).items()}
    points = {}
    for name in found.data.metrics:
        for point in client.get_metric_history(found.info.run_id, name):
            assert points.setdefault((point.step, name), point.value) == point.value or name in ("images_per_s", "input_wait")
    assert {key: value for key, value in points.items() if key[1] not in ("images_per_s", "input_wait")} == _expected(shown)


def _records(path):
    """The records of a file of W&B: LevelDB's log format, blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # the whole of a record, or its last part
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


@pytest.mark.parametrize("shown", ["wandb"], indirect=True)
def test_wandb_shows_one_run_with_config_and_figures(shown):
    points, runs, ends = {}, [], []
    files = sorted((shown.workdir / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) == 3  # one a process: `wandb sync` puts those of an id together
    for record in (each for file in files for each in _records(file)):
        if record.HasField("run"):
            runs.append(record.run)
        if record.HasField("exit"):
            ends.append(record.exit.exit_code)
        if record.HasField("history"):
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            points |= {(values["step"], name): value for name, value in values.items() if name[0] != "_" and name != "step"}
    assert ends == [1, 0, 0]
    assert {(run.run_id, run.project, run.run_group, run.display_name) for run in runs} == {
        (runs[0].run_id, "fingerprint_jax", "run", "run")
    }
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update if item.key[:1] != "_"}
    assert config == json.loads(json.dumps(shown.config.to_dict()))
    points = {key: value for key, value in points.items() if key[1] not in ("images_per_s", "input_wait")}
    expected = _expected(shown)
    assert points.keys() == expected.keys()
    assert all(math.isclose(points[key], expected[key], rel_tol=1e-12) for key in points)
