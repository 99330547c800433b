"""A sweep on this machine: a row that fails stops no other, what is finished is not run again, a stopped sweep goes on."""

import dataclasses
import json
import os
import re
import shutil
import signal
import threading
import time

import pytest

from fingerprint_jax import methods
from fingerprint_jax.evaluation import score
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime.preemption import Preempted
from launch import compare, local, sweep
from tests.conftest import ROOT, finish, fit, load_config, write_sweep
from tests.test_evaluate import run_binary

CONFIG = "configs/quickstart.py:smoke"

# In place of Python: a training that takes --workdir and waits for SIGTERM, or ends at once where `go` lies beside the sweep.
CHILD = """#!/bin/sh
for argument; do case "$argument" in --workdir=*) workdir="${argument#--workdir=}";; esac; done
echo "$*" >> "$workdir/calls.out"
stop() { echo TERM >> "$workdir/told.out"; [ -e "$workdir/slow.out" ] && sleep 0.5; exit 75; }
trap stop TERM
case "$2" in
  fingerprint_jax.main)
    while [ ! -e "$workdir/../go" ]; do sleep 0.05; done
    [ -e "$workdir/../bad" ] && { echo "main: error: bad"; exit 1; }
    [ -e "$workdir/../kill" ] && kill -9 $$
    touch "$workdir/done";;
  fingerprint_jax.evaluate) cp "$(dirname "$0")"/scored/*.json "$workdir";;
esac
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A sweep of two rows whose binaries are the script above."""
    script = tmp_path / "child"
    script.write_text(CHILD)
    script.chmod(0o700)
    finish(tmp_path / "scored")
    monkeypatch.setattr(local.sys, "executable", str(script))
    output = tmp_path / "sweep"
    write_sweep(output, sweep.rows(CONFIG, sweep.values("seed", 0, 1)))
    return output


def test_with_the_real_binaries_a_failing_row_is_named_and_the_other_is_done(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    rows = sweep.rows(CONFIG, sweep.values("optimizer.learning_rate", 1e30, 1e-3))
    sweep.write(tmp_path, data_dir, rows)
    with pytest.raises(ValueError, match=f"1 of 2 rows failed: {re.escape(rows[0].name)}; each has a log.txt"):
        run_binary(local, f"--sweep={tmp_path}", "--jobs=2")
    failure = json.loads((tmp_path / rows[0].name / "failed.json").read_text())
    assert failure["status"] == 1 and failure["error"].startswith("main: error:") and "finite" in failure["error"]
    results = json.loads((tmp_path / rows[1].name / "results.json").read_text())
    assert results["config"]["optimizer"]["learning_rate"] == 1e-3 and "heldout" in results["splits"]
    text = (tmp_path / rows[1].name / "log.txt").read_text()
    assert "fitted" in text and text.count(f"{tmp_path / rows[1].name} on ") == 1  # the launcher writes it, and `main` not too


def test_a_second_run_starts_nothing(stand_in, capsys):
    (stand_in / "go").touch()
    run_binary(local, f"--sweep={stand_in}")
    assert "2 rows are finished" in capsys.readouterr().out
    calls = {path: path.read_text() for path in stand_in.glob("*/calls.out")}
    assert len(calls) == 2
    for row in sweep.read(stand_in)[1]:
        main, evaluation = (stand_in / row.name / "calls.out").read_text().splitlines()
        assert main == f"-m fingerprint_jax.main {' '.join(row.flags)} --config.data_dir=D --workdir={stand_in / row.name}"
        assert evaluation == f"-m fingerprint_jax.evaluate --workdir={stand_in / row.name} --split=heldout"
    finish(stand_in / row.name, estimator={"name": "mypkg.scores:mine"})
    capsys.readouterr()
    run_binary(local, f"--sweep={stand_in}")
    assert {path: path.read_text() for path in calls} == calls
    hint = f"python -m launch.collect --sweep={stand_in} --split=heldout --plugins=mypkg"
    assert capsys.readouterr().out.splitlines()[-1] == f"2 rows are finished: {hint}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_child_and_the_same_command_goes_on(stand_in, number):
    before = signal.getsignal(number)
    first, second = (stand_in / row.name for row in sweep.read(stand_in)[1])

    def stop():
        while not (first / "calls.out").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Preempted, match="the same command continues the sweep"):
        run_binary(local, f"--sweep={stand_in}")
    thread.join()
    assert signal.getsignal(number) == before
    assert not second.exists() and not (first / "failed.json").exists()
    (stand_in / "go").touch()
    run_binary(local, f"--sweep={stand_in}")
    assert local.finished(first, "heldout") and local.finished(second, "heldout")


def test_a_row_that_is_still_saving_is_not_told_again_when_another_has_saved(stand_in):
    folders = [stand_in / row.name for row in sweep.read(stand_in)[1]]
    folders[1].mkdir()
    (folders[1] / "slow.out").touch()

    def stop():
        while not all((folder / "calls.out").exists() for folder in folders):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Preempted):
        run_binary(local, f"--sweep={stand_in}", "--jobs=2")
    thread.join()
    assert [(folder / "told.out").read_text() for folder in folders] == ["TERM\n"] * 2


def test_what_failed_is_tried_again_and_another_split_too(stand_in):
    (stand_in / "go").touch()
    (stand_in / "bad").touch()
    assert set(local.run_sweep(stand_in, "heldout", 1).values()) == {"failed"}
    errors = {json.loads(path.read_text())["error"] for path in stand_in.glob("*/failed.json")}
    assert errors == {"main: error: bad"}
    (stand_in / "bad").rename(stand_in / "kill")
    assert set(local.run_sweep(stand_in, "heldout", 2).values()) == {"failed"}
    assert {json.loads(path.read_text())["error"] for path in stand_in.glob("*/failed.json")} == {"ended by SIGKILL"}
    (stand_in / "kill").unlink()
    assert set(local.run_sweep(stand_in, "heldout", 1).values()) == {"finished"}
    assert not list(stand_in.glob("*/failed.json"))
    assert not local.finished(next(stand_in.glob("quickstart*")), "valid")


def test_what_was_scored_on_other_data_or_with_another_config_is_not_finished(tmp_path):
    finish(tmp_path, num_steps=3)
    path = tmp_path / "results.json"
    content = json.loads(path.read_text())
    assert local.finished(tmp_path, "heldout") and not local.finished(tmp_path, "valid")
    of = content["splits"]["heldout"]
    for change, own in (({}, True), ({"fingerprints": {"a": "b"}, "data_dir": "B"}, False), ({"config_hash": ""}, False)):
        before = {"schema": 2, "config": {}, "splits": {"heldout": {}}}  # no split of which says it
        for document in (content | {"splits": {"heldout": of | change}}, of | change | before):
            path.write_text(json.dumps(document))
            assert local.finished(tmp_path, "heldout") == own
    path.write_text(json.dumps(content | of | {"splits": {"heldout": {}}}))  # scored before another split was, as we do now
    assert not local.finished(tmp_path, "heldout")
    path.write_text(json.dumps(content))
    (tmp_path / "provenance.json").unlink()
    assert not local.finished(tmp_path, "heldout")


def test_files_of_somebody_else_in_the_folder_of_a_row_stop_all_before_anything_runs(stand_in, monkeypatch):
    monkeypatch.setattr(local.Launcher, "call", None)
    folder = stand_in / sweep.read(stand_in)[1][1].name
    folder.mkdir()
    for name, text, said in (
        ("thesis.tex", "mine", "is no run, and 'thesis.tex' is in it: name an empty folder"),
        ("failed.json", '{"mine": 1}', "failed.json cannot be used .field 'error' is missing.: move it away"),
    ):
        (folder / name).write_text(text)
        with pytest.raises(ValueError, match=said):
            local.run_sweep(stand_in, "heldout", 1)
        assert (folder / name).read_text() == text
        (folder / name).unlink()


def test_a_row_whose_member_was_exchanged_since_it_was_scored_is_not_finished(data_dir, tmp_path):
    """Else the p and the notes of the old members stood beside the figure of the new ones."""
    for name in ("gan_leaks", "domias"):
        fit(f"configs/subtask1/{name}.py", data_dir, tmp_path / name)
    workdir = tmp_path / "sweep" / "row"
    config = load_config("configs/subtask1/combined.py")
    config.data_dir, config.ensemble.runs = data_dir, (str(tmp_path / "gan_leaks"), str(tmp_path / "domias"))
    methods.fit(run := Run(config, workdir))
    score.evaluate(run, "heldout")
    assert local.finished(workdir, "heldout") and compare.finished(workdir, "heldout")
    shutil.copytree(tmp_path / "sweep", tmp_path / "moved")
    assert local.finished(tmp_path / "moved" / "row", "heldout") and compare.finished(tmp_path / "moved" / "row", "heldout")
    shutil.rmtree(tmp_path / "domias")
    assert local.finished(workdir, "heldout")  # nothing says otherwise
    fit("configs/subtask1/monte_carlo.py", data_dir, tmp_path / "domias")
    assert not local.finished(workdir, "heldout") and not compare.finished(workdir, "heldout")
    methods.fit(run)
    score.evaluate(methods.load(workdir), "heldout")
    assert local.finished(workdir, "heldout") and compare.finished(workdir, "heldout")


def test_a_row_whose_network_was_trained_anew_in_its_place_is_not_finished(data_dir, tmp_path):
    """Step, config and data of both are the same, and the code of other packages is asked elsewhere."""
    fit("configs/subtask2/aimm_siamese.py", data_dir, tmp_path / "network")
    config = load_config("configs/subtask2/siamese_vote.py")
    config.data.folds = load_config("configs/subtask2/aimm_siamese.py").data.folds
    config.data_dir, config.ensemble.runs, config.ensemble.combine = data_dir, (str(tmp_path / "network"),), "mean"
    methods.fit(run := Run(config, tmp_path / "row"))
    score.evaluate(run, "heldout")
    document = json.loads((run.workdir / "results.json").read_text())
    of = document["splits"]["heldout"]
    assert len(of["checkpoints"]) == 1
    coded = {name: {"state": state, "code": {"mypkg": "1"}} for name, state in of["state"].items()}
    for change, same in (
        ({}, True),
        ({"state": coded}, True),
        ({"checkpoints": None}, True),  # as those of before
        ({"checkpoints": ["another"]}, False),
    ):
        document["splits"]["heldout"] = of | change
        (run.workdir / "results.json").write_text(json.dumps(document))
        assert local.finished(run.workdir, "heldout") == compare.finished(run.workdir, "heldout") == same, change


def test_the_run_of_another_row_stops_all_before_anything_runs(tmp_path, monkeypatch):
    rates = ("a", 0.5), ("b", 2.0)
    rows = sweep.rows(CONFIG, sweep.product(sweep.values("optimizer.rates", *rates), sweep.values("seed", 0, 1)))
    write_sweep(tmp_path, rows)
    rows = sweep.read(tmp_path)[1]
    for row in rows:
        config = sweep.resolve(row.config, row.overrides)
        finish(tmp_path / row.name, seed=config.seed, optimizer={"rates": config.optimizer.rates})
    assert set(local.run_sweep(tmp_path, "heldout", 1).values()) == {"finished"}
    monkeypatch.setattr(local.Launcher, "call", None)
    for other, said in ((1, "seed is 1 in its folder, 0"), (2, "optimizer.rates is ['b', 2.0] in its folder, ['a', 0.5]")):
        folders = [tmp_path / rows[i].name for i in (0, other)]
        swap(*folders)
        text = re.escape(f"row {rows[0].name}: config.{said} in the sweep: put the runs in their own folders")
        with pytest.raises(ValueError, match=text):
            local.run_sweep(tmp_path, "heldout", 1)
        assert set(local.run_sweep(tmp_path, "heldout", 1, [rows[3].name]).values()) == {"finished"}
        swap(*folders)


def test_a_run_of_another_config_in_the_folder_of_a_row_stops_all(tmp_path):
    """Also where no field of the sweep tells it: the row has no other fields, or its file says something else now."""
    (row,) = sweep.rows(CONFIG, sweep.values("seed", 0))
    config = sweep.resolve(row.config, row.overrides)
    sweep.write(tmp_path, "D", [row])
    finish(tmp_path / row.name, **config.to_dict())
    assert local.of_another(row, tmp_path / row.name) == ""
    shutil.rmtree(tmp_path / row.name)
    finish(tmp_path / row.name, **config.to_dict() | {"num_steps": 1})
    assert local.of_another(dataclasses.replace(row, hash=""), tmp_path / row.name) == ""  # of an older sweep
    text = f"row {row.name}: the run in its folder is of another config than {CONFIG}: put the runs in their own folders"
    with pytest.raises(ValueError, match=re.escape(text)):
        local.run_sweep(tmp_path, "heldout", 1)


def test_a_path_from_home_is_that_in_full(tmp_path):
    values = {"init_from": "~/a", "ensemble.runs": ["~/b", "c"], "backbone.weights": "~/w+pip:x"}
    row = sweep.Row("row", CONFIG, values)
    home = os.path.expanduser("~")
    full = {"init_from": f"{home}/a", "ensemble": {"runs": [f"{home}/b", "c"]}, "backbone": {"weights": f"{home}/w+pip:x"}}
    (tmp_path / "config.json").write_text(json.dumps(full))
    assert local.of_another(row, tmp_path) == ""
    (tmp_path / "config.json").write_text(json.dumps(full | {"init_from": f"{home}/b"}))
    assert local.of_another(row, tmp_path) == f"config.init_from is '{home}/b' in its folder, '{home}/a' in the sweep"


def swap(a, b):
    a.rename(a.with_name("x"))
    b.rename(a)
    a.with_name("x").rename(b)


def test_chosen_rows_run_beside_others_and_not_beside_the_whole_sweep(stand_in):
    (stand_in / "go").touch()
    first, second = (row.name for row in sweep.read(stand_in)[1])
    with (stand_in / "lock").open("a+") as lock:
        local.fcntl.flock(lock, local.fcntl.LOCK_SH)  # of another launcher that has chosen rows
        run_binary(local, f"--sweep={stand_in}", f"--rows={second}")
        assert local.finished(stand_in / second, "heldout") and not (stand_in / first).exists()
        with pytest.raises(ValueError, match="another process runs this sweep"):
            run_binary(local, f"--sweep={stand_in}")
    with pytest.raises(ValueError, match="--rows=third: no such row in .*sweep.json"):
        run_binary(local, f"--sweep={stand_in}", f"--rows={first},third")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_what_another_command_starts_is_told_by_a_usr1_alone(stand_in, tmp_path, number):
    through, told = tmp_path / "start it", tmp_path / "start it was told"
    traps = "".join(f"trap 'echo {name} >> \"$0 was told\"' {name}\n" for name in ("USR1", "TERM"))
    through.write_text(f'#!/bin/sh\n{traps}shift\n"$@" & wait $!; wait $!\n')
    through.chmod(0o700)
    (row, _) = (row.name for row in sweep.read(stand_in)[1])

    def stop():
        while not (stand_in / row / "calls.out").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)
        while number == signal.SIGUSR1 and not told.exists():
            time.sleep(0.01)
        time.sleep(0.1)
        (stand_in / "go").touch()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Preempted):  # trained to the end, and then nothing more is started
        run_binary(local, f"--sweep={stand_in}", f"--rows={row}", f"--through='{through}' flag")
    thread.join()
    assert (stand_in / row / "done").exists() and not (stand_in / row / "results.json").exists()
    assert (told.read_text() if told.exists() else "") == "USR1\n" * (number == signal.SIGUSR1)


@pytest.mark.parametrize(
    ("status", "error"), [(-9, "ended by SIGKILL"), (137, "ended by SIGKILL"), (1, "main: error: bad"), (255, "main: error: bad")]
)
def test_why_a_row_failed(tmp_path, monkeypatch, status, error):
    launcher = local.Launcher(tmp_path, "", "heldout")

    def call(command, workdir):
        workdir.mkdir()
        (workdir / "log.txt").write_text("main: error: bad\nsrun: error: vm: task 0: Exited with exit code 1\n\n")
        return status

    monkeypatch.setattr(launcher, "call", call)
    assert launcher.fit_and_evaluate(sweep.Row("r", CONFIG, {})) == "failed"
    assert json.loads((tmp_path / "r" / "failed.json").read_text())["error"] == error


@pytest.mark.parametrize("status", [-15, -2, 75, 130, 143])
def test_what_a_signal_stopped_has_not_failed(tmp_path, monkeypatch, status):
    launcher = local.Launcher(tmp_path, "", "heldout")
    monkeypatch.setattr(launcher, "call", lambda command, workdir: status)
    assert launcher.fit_and_evaluate(sweep.Row("r", CONFIG, {})) == "stopped" and launcher.stopping.is_set()


def test_two_launchers_do_not_share_a_sweep(stand_in):
    with (stand_in / "lock").open("a") as lock:
        local.fcntl.flock(lock, local.fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process runs this sweep"):
            local.run_sweep(stand_in, "heldout", 1)
    with pytest.raises(ValueError, match="--jobs=0: at least 1"):
        local.run_sweep(stand_in, "heldout", 0)


def test_what_a_row_says_is_written_through_no_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "row").mkdir()
    (tmp_path / "row" / "log.txt").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="log.txt: a link, expected a file"):
        local.Launcher(tmp_path, "", "heldout").call(["fingerprint_jax.nothing"], tmp_path / "row")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_log_or_lock_that_is_a_link_or_a_pipe_is_refused(stand_in, tmp_path):
    (stand_in / "go").touch()
    first = stand_in / sweep.read(stand_in)[1][0].name
    first.mkdir()
    (tmp_path / "mine").write_text("my keys")
    (first / "log.txt").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="log.txt: a link, expected a file"):
        local.run_sweep(stand_in, "heldout", 1)
    assert (tmp_path / "mine").read_text() == "my keys"
    (stand_in / "lock").unlink()
    (stand_in / "lock").symlink_to(tmp_path / "new")
    with pytest.raises(ValueError, match="lock: a link, expected a file"):
        local.run_sweep(stand_in, "heldout", 1)
    assert not (tmp_path / "new").exists()
