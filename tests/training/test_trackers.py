"""What trackers are told of a run; MLflow and Weights & Biases by what they have written themselves."""

import importlib.util
import json
import logging
import math
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import threading
from unittest import mock

import pytest

from fingerprint_jax import evaluate, methods
from fingerprint_jax.data import packing, phantom
from fingerprint_jax.evaluation.results import tracked
from fingerprint_jax.runs import start
from fingerprint_jax.runs.config import flat_config
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import files
from fingerprint_jax.training import trackers
from tests.conftest import fit_until, last_state, same_bytes, tiny_config, untimed
from tests.test_evaluate import run_binary


class Fake:
    """Keeps what it is told, one list a start."""

    told: dict[str, list] = {}
    configs: list[dict] = []

    def __init__(self, run):
        self.said = self.told.setdefault(str(run.workdir), [])
        self.configs.append(run.config.to_dict())

    def metrics(self, step, values):
        self.said.append((step, dict(values)))

    def end(self, finished):
        self.said.append(finished)


class Broken(Fake):
    def metrics(self, step, values):
        raise RuntimeError("no network to http://me:secret@host:9/\nand a page of why")


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    monkeypatch.setattr(Fake, "told", {})
    monkeypatch.setattr(Fake, "configs", [])
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
    text = f"{run.workdir}: broken takes no more figures, all else goes on: no network to http://host:9/"
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


def test_a_copy_a_moved_run_and_one_that_is_begun_anew_are_runs_of_their_own(tmp_path):
    run, copy = (Run(tiny_config("nowhere"), tmp_path / name) for name in ("run", "copy"))
    own = trackers._key(run, "fake")
    assert re.fullmatch("[0-9a-f]{16}", own) and trackers._key(run, "fake") == own
    shutil.copytree(run.workdir, copy.workdir)
    assert trackers._key(copy, "fake") != own  # whatever its file says
    shutil.rmtree(run.workdir)
    assert trackers._key(run, "fake") != own
    shutil.rmtree(run.workdir)
    copy.workdir.rename(run.workdir)
    assert trackers._key(run, "fake") == own  # it lies where it lay
    path = run.workdir / "trackers" / "fake.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="fake.json cannot be used"):
        trackers._key(run, "fake")
    path.unlink()
    path.symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="fake.json is a link"):
        trackers._key(run, "fake")


def test_one_process_at_a_time_opens_the_database(tmp_path, tracker, monkeypatch):
    """Two that made its tables at once ended with an error of MLflow."""
    held = []

    def client(_):
        with pytest.raises(files.Held, match="held"), files.locked(tmp_path / "home" / "fingerprint_jax" / "mlflow.lock", "held"):
            pass
        held.append(True)
        return mock.MagicMock()

    monkeypatch.setitem(sys.modules, "mlflow", mock.MagicMock(MlflowClient=client))
    trackers.Mlflow(Run(tiny_config("nowhere"), tmp_path / "run"))
    with files.locked(tmp_path / "home" / "fingerprint_jax" / "mlflow.lock", "held"):
        assert held == [True]


def test_what_goes_to_no_server_lies_in_a_folder_of_the_user_alone(tmp_path, monkeypatch):
    libraries = {"mlflow": mock.MagicMock(), "wandb": mock.MagicMock()}
    for name, library in libraries.items():
        monkeypatch.setitem(sys.modules, name, library)
    for name in ("XDG_DATA_HOME", "MLFLOW_TRACKING_URI", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = Run(tiny_config("nowhere"), tmp_path / "run")

    def places():
        trackers.Mlflow(run), trackers.Wandb(run)
        return libraries["mlflow"].MlflowClient.call_args.args[0], libraries["wandb"].init.call_args.kwargs["dir"]

    folder = tmp_path / ".local" / "share" / "fingerprint_jax"
    assert places() == (f"sqlite:///{folder}/mlflow.db", str(folder)) and folder.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in run.workdir.iterdir()) == ["trackers"]
    folder.chmod(0o750)
    for tracker in (trackers.Mlflow, trackers.Wandb):
        with pytest.raises(ValueError, match=f"{folder} is open to others: make it yours alone"):
            tracker(run)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert places() == (f"sqlite:///{tmp_path}/data/fingerprint_jax/mlflow.db", str(tmp_path / "data" / "fingerprint_jax"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    monkeypatch.setenv("WANDB_DIR", "elsewhere")
    assert places() == ("http://server", "elsewhere")


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


def test_figures_of_other_data_and_those_with_a_note_have_names_of_their_own(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.setattr(trackers, "check", tuple)
    said = {}
    for seed in (8, 9):
        content = phantom.subtask2(seed=seed, size=48, leak=0.5, real=8, generated=10, unknown=5)
        phantom.write(tmp_path / f"new{seed}", "subtask2", content, seed)
        packing.pack("subtask2", str(data := tmp_path / f"data{seed}"), str(tmp_path / f"new{seed}" / "train"))
        digest = json.loads(next(data.rglob("summary.json")).read_text())["splits"]["train_generated"]["fingerprint"]
        run_binary(evaluate, f"--workdir={tmp_path / 'run'}", "--split=train_generated", f"--data_dir={data}", "--trackers=fake")
        (_, said[f"train_generated_{digest[:8]}"]), _ = Fake.told[str(tmp_path / "run")][-2:]
    run_binary(evaluate, f"--workdir={tmp_path / 'run'}", "--split=train_generated", "--trackers=fake")
    (_, said["train_generated_in_sample"]), _ = Fake.told[str(tmp_path / "run")][-2:]
    assert len(said) == 3  # names that no two of them share
    for prefix, values in said.items():
        assert f"{prefix}_accuracy" in values
        assert all(re.match(f"{prefix}_(accuracy|cohen_kappa|auc)", name) for name in values)
    config = json.loads((trained / "config.json").read_text())
    assert [json.loads(json.dumps(each)) for each in Fake.configs] == [config] * 3  # its own data_dir


def test_each_note_and_the_split_that_a_decision_learned_from_are_in_the_name(trained):
    run, results = Run.load(trained), json.loads((trained / "results.json").read_text())["splits"]["heldout"]

    def prefix(split="heldout", known="", changed=(), **notes):
        run.config.decision.known = known
        digests = results["fingerprints"] | {name: f"{name[-4:]}{'0' * 60}" for name in changed}
        found = tracked(run, results | {"split": split, "fingerprints": digests} | notes)
        return next(name for name in found if name.endswith("_accuracy")).removesuffix("_accuracy")

    assert prefix() == prefix(changed=["train_real"]) == "heldout"  # which has no part in it
    assert prefix("heldout:1") == "heldout-1"
    assert prefix(unfinished=["?"], transductive=["?"]) == "heldout_transductive_unfinished"
    assert prefix(in_sample=["?"], changed=[run.target]) == f"heldout_{run.target[-4:]}0000_in_sample"
    assert prefix(known="train_real") == "heldout"
    assert prefix(known="train_real", changed=["train_real"]) == "heldout_real0000"


def _hot_journal(path, victim):
    """Leaves beside a database the journal of a transaction that a kill has cut short, which names `victim` as its super-journal.

    https://www.sqlite.org/fileformat.html, section 3; a super-journal that no journal names any more is removed.
    """
    head, magic, name = path.read_bytes()[:100], bytes.fromhex("d9d505f920a163d7"), str(victim).encode()
    (page,), (pages,) = struct.unpack(">H", head[16:18]), struct.unpack(">I", head[28:32])
    start = (magic + struct.pack(">5I", 0, 1, pages, 512, page)).ljust(512, b"\0")
    end = struct.pack(">I", 2**30 // page + 1) + name + struct.pack(">2I", len(name), sum(name)) + magic
    path.with_name(f"{path.name}-journal").write_bytes(start + end)


def test_mlflow_opens_no_database_that_came_with_a_run(trained, tmp_path, tracker):
    tracker("mlflow")
    shutil.copytree(trained, run := tmp_path / "run")
    (victim := tmp_path / "victim").write_text("mine")
    (database := run / "mlruns" / "mlflow.db").parent.mkdir()
    with sqlite3.connect(database) as connection:
        connection.execute("create table t (x)")
    connection.close()
    _hot_journal(database, victim)
    run_binary(evaluate, f"--workdir={run}", "--trackers=mlflow")
    assert victim.exists()
    sqlite3.connect(database).execute("select * from t")
    assert not victim.exists()  # as it would have been


def test_wandb_runs_no_git_in_a_folder_that_came_with_a_run(trained, tmp_path, tracker, monkeypatch):
    tracker("wandb")
    monkeypatch.setenv("WANDB_SAVE_CODE", "true")  # then it asks git what has changed
    shutil.copytree(trained, run := tmp_path / "run")

    def git(*arguments):
        subprocess.run(["git", "-C", str(run), "-c", "user.name=x", "-c", "user.email=x@y", *arguments], check=True)

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message=x")
    git("config", "core.fsmonitor", f"touch {tmp_path / 'ran'}; false")
    run_binary(evaluate, f"--workdir={run}", "--trackers=wandb")
    assert not (tmp_path / "ran").exists()
    assert list((tmp_path / "home").glob("fingerprint_jax/wandb/offline-run-*/*.wandb"))
    git("diff")
    assert (tmp_path / "ran").exists()  # as it would have been


@pytest.fixture
def tracker(tmp_path, monkeypatch):
    """A function that skips a test where a library is not installed; what goes to no server lies in `home` of the test."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT", "WANDB_RUN_GROUP", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return lambda name: pytest.importorskip(name, reason=f"pip install 'fingerprint_jax[{name}]'")


@pytest.fixture
def shown(data_dir, tmp_path, tracker, request):
    """A run that was stopped, went on and was scored."""
    tracker(request.param)
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

    client = mlflow.MlflowClient(f"sqlite:///{shown.workdir.parent}/home/fingerprint_jax/mlflow.db")
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
    folder = shown.workdir.parent / "home" / "fingerprint_jax" / "wandb"
    parts = sorted(folder.glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert len(parts) == 3  # one a process: `wandb sync` puts those of an id together
    for record in (each for file in parts for each in _records(file)):
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
