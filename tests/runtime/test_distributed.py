"""Real processes on this machine: two of two devices do what one of four does, and stop, fail and die together."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import absl.flags
import jax
import numpy as np
import pytest

from fingerprint_jax import evaluate, methods
from fingerprint_jax.data import packing, tables
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import distributed, files, preemption
from fingerprint_jax.runtime.preemption import RUN_AGAIN
from tests import processes
from tests.conftest import load_config
from tests.faults import trainer

# As the file of an experiment: what the processes train is one run of them all.
CONFIG = """
from ml_collections import ConfigDict

from configs import base
from configs.subtask1 import aimm_siamese


def get_config(variant=""):
    if variant == "siamese":
        m = aimm_siamese.get_config().member
        m.num_steps, m.eval_every, m.checkpoint_every, m.log_every = 50, 50, 50, 1
        m.backbone.name = "siamese_cnn_tiny"
        m.data.streams, m.data.folds, m.data.fold = ConfigDict({"real": 8, "generated": 8}), 2, 0
        m.objective.num_pairs, m.optimizer.name = 8, "sgd"  # at the published rate: a larger one blows up what rounding differs
        return m
    m = base.gradient("subtask2")
    m.num_steps, m.eval_every, m.checkpoint_every, m.log_every = 120, 40, 40, 1
    m.data.streams, m.eval_batch = ConfigDict({"generated": 8}), 16
    m.data.valid, m.augment.flip = 0.1, 0.5
    m.backbone = ConfigDict({"name": "mlp_tiny", "weights": ""})
    m.optimizer.name, m.optimizer.learning_rate = "sgd", 1e-3
    if variant == "one":
        m.data.folds, m.data.fold = 2, 0
        return m
    c = base.ensemble(m)
    c.data.folds, c.data.fold, c.data.valid = 2, 0, 0.1
    adam = {"backbone": {"name": "resnet_tiny", "weights": ""}, "data": {"cache": "device"}, "num_steps": 20}
    c.ensemble.variants = ConfigDict({"sgd": {}, "adam": adam | {"optimizer": {"name": "adam", "shard_state": True}}})
    c.ensemble.variants.pixels = base.featured("subtask2", "pixels")
    c.ensemble.variants.pixels.gallery = ConfigDict({"labelled": ("train_generated",)})
    c.ensemble.combine = "rank"
    return c
"""


class Processes:
    """Processes of one command, started together; `wait` -> [(exit status, standard error)]."""

    def __init__(self, module, *flags, count=2, devices=2, own=((), ())):
        self.each = []
        for i in range(count):
            several = [f"--coordinator=127.0.0.1:{_port(i)}", f"--processes={count}", f"--process={i}"] if count > 1 else []
            env = {"JAX_NUM_CPU_DEVICES": str(devices)}
            given = [*map(str, flags), *several, *own[i]] if i < len(own) else [*map(str, flags), *several]
            self.each.append(processes.Process(f"fingerprint_jax.{module}", *given, env=env))

    def wait(self, timeout=300):
        try:
            return [(process.wait(timeout), process.communicate()[1]) for process in self.each]
        finally:
            for process in self.each:
                process.kill()


_ports = []


def _port(i):
    if i == 0:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            _ports.append(free.getsockname()[1])
    return _ports[-1]


def _ended_well(processes):
    for status, text in processes.wait():
        assert status == 0, text
    return text


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(CONFIG)
    return path


def _fitted(config, data_dir, folder):
    """{1: by one process of four devices, 2: by two of two}: the folders of the runs."""
    found = {}
    for count in (1, 2):
        found[count] = folder / f"processes{count}"
        flags = (f"--config={config}", f"--config.data_dir={data_dir}", f"--workdir={found[count]}")
        _ended_well(Processes("main", *flags, count=count, devices=4 // count))
    return found


@pytest.fixture(scope="module")
def runs(config, data_dir, tmp_path_factory):
    """An ensemble of two networks and a classical system, fitted by one process and by two."""
    return _fitted(config, data_dir, tmp_path_factory.mktemp("runs"))


def _same_losses(workdirs, steps, tolerance):
    one, two = ([line["loss"] for line in trainer.history(workdirs[count])[:steps] if "loss" in line] for count in (1, 2))
    assert len(one) >= steps - 5
    np.testing.assert_allclose(one, two, rtol=tolerance)
    assert Run.load(workdirs[2]).provenance["starts"][0]["topology"].startswith("2x2 cpu")
    return one


@pytest.mark.parametrize(("child", "steps", "tolerance"), [("sgd-seed0", 50, 1e-5), ("adam-seed0", 20, 1e-3)])
def test_two_processes_train_as_one(child, steps, tolerance, runs):
    _same_losses({count: runs[count] / "children" / child for count in runs}, steps, tolerance)


def test_two_processes_train_the_siamese_network_as_one(config, data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    workdirs = _fitted(f"{config}:siamese", data_dir, tmp_path)
    # Longer, rounding decides: at step 45 the loss of one device and that of four part by 1e-4.
    losses = _same_losses(workdirs, 40, 1e-5)
    assert len(set(losses)) > 35  # each step has a batch of its own
    assert any((tmp_path / "cache").iterdir())
    # What earlier runs have compiled: of two processes one would read the step, and the other compile it.
    again = ("main", f"--config={config}:siamese", f"--config.data_dir={data_dir}", f"--workdir={tmp_path / 'again'}")
    _ended_well(Processes(*again))
    assert _same_losses(workdirs | {2: tmp_path / "again"}, 40, 1e-5) == losses


def test_each_file_is_written_once(runs):
    def content(root):
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and "checkpoints" not in path.parts)

    names = {count: [re.sub(r"events[^/]*", "events", name) for name in content(runs[count])] for count in runs}
    assert sorted([*names[1], "log-1.txt"]) == names[2] and not any(name.endswith(".tmp") for name in names[2])
    lines = trainer.steps(runs[2] / "children" / "adam-seed0")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 21))


def test_predictions_do_not_depend_on_the_number_of_processes(runs, tmp_path):
    """Two processes restore the checkpoints of one."""
    copies = [tmp_path / "here", tmp_path / "elsewhere"]
    for copy in copies:
        shutil.copytree(runs[1], copy, ignore=shutil.ignore_patterns("predictions", "outputs", "features"))
    _ended_well(Processes("evaluate", f"--workdir={copies[1]}", "--split=heldout"))
    expected = methods.predict(Run.load(copies[0]), "heldout")
    ids, scores, _ = tables.read_predictions(copies[1] / "predictions" / "heldout.csv")
    assert ids == expected.ids.tolist()
    np.testing.assert_array_equal(scores, expected.scores)
    for child in ("sgd-seed0", "adam-seed0", "pixels-seed0"):
        found = [tables.read_predictions(copy / "children" / child / "predictions" / "heldout.csv")[1] for copy in copies]
        np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)
    assert json.loads((copies[1] / "results.json").read_text())["splits"]["heldout"]["n"] == len(ids)


@pytest.fixture
def started(config, data_dir, tmp_path):
    """Two processes that train `sgd` alone, at a step past the fifth; the flags they were started with."""
    flags = (f"--config={config}:one", f"--config.data_dir={data_dir}", f"--workdir={tmp_path / 'run'}")
    processes = Processes("main", *flags)
    while trainer.last_step(tmp_path / "run") < 5:
        for process in processes.each:
            assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    return processes, flags, tmp_path / "run"


def test_a_signal_to_one_stops_all_at_one_step_and_they_go_on_to_the_same_bytes(started, runs, tmp_path, caplog):
    processes, flags, workdir = started
    processes.each[1].send_signal(signal.SIGUSR1)
    ended = processes.wait()
    assert [status for status, _ in ended] == [RUN_AGAIN] * 2, ended
    (step,) = {int(re.search(r"SIGUSR1: saved at step (\d+); the same command continues the run", text)[1]) for _, text in ended}
    assert step < 120 and max(trainer.saved(workdir)) == step
    shutil.copytree(workdir, tmp_path / "moved")
    again = Processes("main", *flags).wait()
    assert [status for status, _ in again] == [0, 0], again
    assert f"resumes at step {step}\n" in again[0][1] and "topology" not in again[0][1]
    reference = runs[2] / "children" / "sgd-seed0"
    assert trainer.state(workdir) == trainer.state(reference)
    assert trainer.history(workdir) == trainer.history(reference)
    moved = Run.load(tmp_path / "moved")
    methods.get("gradient").fit(moved)
    assert f"topology changed: 2x2 cpu -> 1x{jax.device_count()} cpu processes x devices" in caplog.text
    assert [start["step"] for start in moved.provenance["starts"]] == [0, step]
    for mine, other in zip(trainer.history(moved.workdir), trainer.history(reference), strict=True):
        # Sums are rounded otherwise on one device, and training lets that grow: after 300 steps 1.3e-3 was seen.
        assert mine == pytest.approx(other, rel=1e-2)


def test_a_process_that_is_killed_ends_the_other(started):
    processes, _, workdir = started
    processes.each[1].kill()
    begin = time.monotonic()
    (status, text), _ = processes.wait()
    assert time.monotonic() - begin < 30
    assert status == RUN_AGAIN, text
    assert text.splitlines()[-1] == "main: process 1 of 2 is gone, killed or with its machine; the same command continues"


def test_what_process_0_refuses_ends_all_with_its_line(config, data_dir, tmp_path):
    with files.locked(tmp_path / "lock", "%s"):
        flags = (f"--config={config}:one", f"--config.data_dir={data_dir}", f"--workdir={tmp_path}")
        for status, text in Processes("main", *flags).wait():
            assert status == 1 and "Traceback" not in text
            line = rf"main: (process \d: )?error: {tmp_path}: process {os.getpid()} on .* is fitting this run"
            assert re.match(line, text.splitlines()[-1]), text


@pytest.mark.parametrize("module", ["main", "evaluate"])
def test_a_process_that_sees_other_data_ends_all(module, config, data_dir, packs, phantoms, tmp_path):
    """A copy on another machine may be an older one: it would hold other images out, or none."""
    packing.pack("subtask2", tmp_path / "older", phantoms["subtask2"] / "train")
    flags = [f"--workdir={tmp_path / 'run'}", *([f"--config={config}:one"] if module == "main" else ["--split=heldout"])]
    if module == "evaluate":
        Processes(
            "main", f"--config={config}:one", f"--config.data_dir={data_dir}", "--config.num_steps=0", flags[0], count=1
        ).wait()
    name = "--config.data_dir" if module == "main" else "--data_dir"
    both = Processes(module, *flags, count=2, own=[[f"{name}={data_dir}"], [f"{name}={tmp_path / 'older'}"]])
    for status, text in both.wait():
        assert status == 1 and "Traceback" not in text
        assert "process 1 has another config or other data than process 0: give all the same" in text.splitlines()[-1], text
    assert not (tmp_path / "run" / ("done" if module == "main" else "results.json")).exists()


FLAGS = {"coordinator": None, "processes": None, "process": None}
KUBERNETES = {"FINGERPRINT_COORDINATOR": "job-0.svc:1234", "FINGERPRINT_PROCESSES": "4", "FINGERPRINT_PROCESS": "3"}
SLURM = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NODELIST": "gpu[007-012,15],other",
}


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ({}, {}, None),
        ({}, {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, None),  # a batch script
        ({}, SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({}, SLURM, ("gpu007:61632", 2, 1)),
        ({}, SLURM | {"SLURM_STEP_NODELIST": "a-1,a-2"}, ("a-1:61632", 2, 1)),
        ({}, SLURM | {"SLURM_STEP_NODELIST": "host"}, ("host:61632", 2, 1)),
        ({}, SLURM | KUBERNETES, ("job-0.svc:1234", 4, 3)),
        ({}, dict.fromkeys(KUBERNETES, "") | SLURM, ("gpu007:61632", 2, 1)),
        ({"coordinator": "10.0.0.1:80", "processes": 2, "process": 0}, SLURM | KUBERNETES, ("10.0.0.1:80", 2, 0)),
        ({"coordinator": "[::1]:80", "processes": 1, "process": 0}, KUBERNETES, None),
    ],
)
def test_flags_come_before_the_environment_and_that_before_slurm(flags, environ, expected):
    assert distributed.settings(FLAGS | flags, environ) == expected


def test_processes_of_one_command_have_the_same_flags():
    """With another split each would score its part of other images (seen: a table with 14 of 30 rows of another split)."""

    def command(*given):
        values = absl.flags.FlagValues()
        evaluate.define_flags(values)
        values(["evaluate", *given])
        return distributed.command(values)

    own = command("--workdir=a", "--data_dir=/mnt/d", "--coordinator=h:1", "--processes=2", "--process=0")
    assert own == command("--workdir=/x/a", "--data_dir=/disk/d", "--coordinator=h:1", "--processes=2", "--process=1")
    for other in ("--split=valid", "--compare=b", "--step=2", "--submission=x.csv", "--recompute"):
        assert own != command("--workdir=a", other)


def test_in_a_shell_that_srun_gave_a_terminal_there_is_one_process():
    """Its step may have more tasks, which have no terminal and do nothing; what srun starts in that shell is told apart."""
    main, terminal = os.openpty()
    tasks = {
        kind: subprocess.Popen(["sleep", "60"], stdin=stdin) for kind, stdin in (("shell", terminal), ("task", subprocess.DEVNULL))
    }
    try:
        ids = {kind: str(process.pid) for kind, process in tasks.items()} | {"this": str(os.getpid()), "gone": "0"}
        environs = {kind: SLURM | {"SLURM_PTY_PORT": "1", "SLURM_TASK_PID": pid} for kind, pid in ids.items()}
        found = {kind: distributed.settings(FLAGS, environ) for kind, environ in environs.items()}
        two = ("gpu007:61632", 2, 1)
        assert found == {"shell": None, "task": two, "this": two, "gone": two}
        assert distributed.settings(FLAGS, SLURM | {"SLURM_TASK_PID": ids["shell"]}) == two
    finally:
        for process in tasks.values():
            process.kill()
            process.wait()
        os.close(main)
        os.close(terminal)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),
        (SLURM | {"SLURM_STEP_NUM_NODES": "2", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, None),  # the only task of its node
        (SLURM | {"SLURM_STEP_NUM_NODES": "1", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [2, 3]),
        (SLURM | {"SLURM_STEP_NUM_NODES": "1", "CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}, None),
        (SLURM | {"SLURM_STEP_NUM_NODES": "1", "CUDA_VISIBLE_DEVICES": "0"}, None),
    ],
)
def test_tasks_of_slurm_share_the_gpus_of_their_node(environ, expected):
    assert distributed.gpus_of_task({"SLURM_LOCALID": "1"} | environ) == expected


def test_gpus_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="2 tasks see 3 GPUs of their node"):
        distributed.gpus_of_task(SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2"})


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        (
            {"process": 0},
            KUBERNETES,
            "--coordinator, --processes missing: one process of several needs --coordinator, --processes, --",
        ),
        ({}, KUBERNETES | {"FINGERPRINT_PROCESS": ""}, "FINGERPRINT_PROCESS missing: "),
        ({}, KUBERNETES | {"FINGERPRINT_PROCESS": "4"}, "FINGERPRINT_PROCESS=4: with FINGERPRINT_PROCESSES=4 give 0 to 3"),
        ({}, KUBERNETES | {"FINGERPRINT_PROCESSES": "two"}, "FINGERPRINT_PROCESSES=two: give a whole number from 1 on"),
        (
            {},
            KUBERNETES | {"FINGERPRINT_COORDINATOR": "host"},
            "FINGERPRINT_COORDINATOR=host: give host:port, for example node1:12345",
        ),
        ({"coordinator": "a:1", "processes": 2, "process": -1}, {}, "--process=-1: give a whole number from 0 on"),
    ],
)
def test_what_is_missing_or_wrong_is_named(flags, environ, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        distributed.settings(FLAGS | flags, environ)


def test_what_is_told_arrives_as_it_was():
    told = {"none": None, "x": [True, 1, 0.1, "é"], "ids": np.array(["a", "bc"]), "scores": np.float32([[0.1], [np.nan]])}
    found = distributed._decode(distributed._encode(told))
    assert found.keys() == told.keys() and found["none"] is None and found["x"] == told["x"]
    for name in ("ids", "scores"):
        assert found[name].dtype == told[name].dtype
        np.testing.assert_array_equal(found[name], told[name])
    with pytest.raises(TypeError, match="Run cannot be told"):
        distributed._encode([Run(load_config("configs/quickstart.py"), "x")])


def test_a_step_that_stalls_shows_where(capfd, monkeypatch):
    monkeypatch.setattr(preemption, "_stall", 0.0)
    preemption.watch_steps(0.2)
    with preemption.deferred():
        for _ in range(4):  # in time
            preemption.step_begins()
            time.sleep(0.1)
        assert not capfd.readouterr().err
        time.sleep(0.4)
    assert "Timeout (0:00:00.200000)!" in (text := capfd.readouterr().err) and "test_a_step_that_stalls_shows_where" in text
