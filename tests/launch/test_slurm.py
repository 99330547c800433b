"""Job arrays: what is submitted, what a task does with signals, and the same table on a real Slurm as by launch.local."""

import contextlib
import itertools
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fingerprint_jax.runtime.preemption import RUN_AGAIN, Preempted
from launch import collect, local, slurm, sweep
from tests.conftest import FULL_FAULTS, ROOT, finish, write_sweep
from tests.faults import trainer
from tests.launch import slurm_cluster
from tests.test_evaluate import run_binary

CONFIG = "configs/quickstart.py:smoke"
STOPPED = "the same command continues the run"  # after "saved at step", where it was not before or after all steps
ODD = "a 'b' \"c\" $HOME `d`\n%j é"  # a folder whose name is awkward everywhere

# Slurm's commands, each of which writes its arguments to a file of its own, and says what a file `NAME.says` has.
COMMAND = """#!/bin/sh
printf '%s\\0' "$@" >> "{folder}/$(basename "$0").calls"
cat "{folder}/$(basename "$0").says" 2>/dev/null || exit 0
"""


def program(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """The folder of commands in place of Slurm's; sbatch gives the id 7, and nothing is in the queue."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scontrol", "scancel"):
        program(folder / name, COMMAND.format(folder=folder))
    (folder / "sbatch.says").write_text("7;test\n")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def calls(folder, name):
    path = folder / f"{name}.calls"
    return path.read_bytes().decode().split("\0")[:-1] if path.exists() else []


def write_seeds(output, seeds=3, data_dir="D"):
    return write_sweep(output, sweep.rows(CONFIG, sweep.values("seed", *range(seeds))), data_dir)


def test_what_is_neither_finished_nor_queued_is_submitted_once(stand_ins, tmp_path, capsys):
    output = tmp_path / ODD
    names = write_seeds(output)
    finish(output / names[1])
    flags = ["--partition=a b", "--account=$x", "--time=1:00", "--gpus=a100:2", "--nodes=2", "--tasks_per_node=4", "--grace=60"]
    flags += ["--max_parallel=5", '--sbatch=--comment=it\'s; "$HOME"', "--sbatch=--mem=16G"]
    run_binary(slurm, f"--sweep={output}", *flags)
    (rows,) = (output / "slurm").glob("*.rows")
    assert rows.read_text().splitlines() == [names[0], names[2]]
    assert re.fullmatch("fingerprint-[0-9a-f]{8}", rows.stem)
    litter = rows.with_name(f"._{rows.name}")
    litter.write_bytes(b"\x00\x05\x16\x07\xff")  # as macOS leaves beside what it copies
    given = calls(stand_ins, "sbatch")
    folder = str(output / "slurm").replace("%", "%%")
    expected = ["--parsable", f"--job-name={rows.stem}", "--array=0-1%5", f"--output={folder}/%A_%a.txt"]
    expected += ["--requeue", "--open-mode=append", "--signal=B:USR1@60", "--nodes=2", "--ntasks-per-node=4"]
    expected += ["--partition=a b", "--account=$x", "--time=1:00", "--gpus-per-node=a100:2"]
    expected += ['--comment=it\'s; "$HOME"', "--mem=16G", str(ROOT / "launch" / "slurm.sh")]
    assert given == [*expected, os.getcwd(), sys.executable, str(output), "heldout", str(rows)]
    assert "job 7: 2 of 3 rows" in capsys.readouterr().out
    assert calls(stand_ins, "scontrol") == ["show", "config"]

    (stand_ins / "squeue.says").write_text(f"{rows.stem}|0|RUNNING\n{rows.stem}|1|PENDING\n")
    run_binary(slurm, f"--sweep={output}")
    assert calls(stand_ins, "sbatch") == given  # nothing was submitted
    assert capsys.readouterr().out == f"running    {names[0]}\npending    {names[2]}\n"
    assert calls(stand_ins, "squeue") == ["--noheader", "--array", f"--name={rows.stem}", "--format=%j|%K|%T"]

    (stand_ins / "squeue.says").write_text(f"{rows.stem}|0|RUNNING\n")  # the other one was cancelled
    run_binary(slurm, f"--sweep={output}")
    (new,) = set((output / "slurm").glob("*.rows")) - {rows, litter}
    assert new.read_text().splitlines() == [names[2]] and "--array=0-0" in calls(stand_ins, "sbatch")[len(given) :]


def test_the_end_of_a_wait_says_what_there_is(stand_ins, tmp_path, capsys):
    names = write_seeds(tmp_path / "s", 2)
    with pytest.raises(Preempted, match=rf"2 of 2 rows are not finished: {names[0]}, {names[1]}; the same command goes on"):
        run_binary(slurm, f"--sweep={tmp_path / 's'}", "--wait=0.01")
    finish(tmp_path / "s" / names[0])
    finish(tmp_path / "s" / names[1])
    (tmp_path / "s" / names[1] / "failed.json").write_text('{"error": "x"}')
    with pytest.raises(ValueError, match=f"1 of 2 rows failed: {names[1]}; each has a log.txt"):
        run_binary(slurm, f"--sweep={tmp_path / 's'}", "--wait=0.01")
    (tmp_path / "s" / names[1] / "failed.json").unlink()
    before = calls(stand_ins, "sbatch")
    run_binary(slurm, f"--sweep={tmp_path / 's'}")
    assert "2 rows are finished" in capsys.readouterr().out and calls(stand_ins, "sbatch") == before
    finish(tmp_path / "s" / names[1], seed=0)
    with pytest.raises(ValueError, match=f"row {names[1]}: config.seed is 0 in its folder, 1 in the sweep"):
        run_binary(slurm, f"--sweep={tmp_path / 's'}")


def test_a_controller_that_does_not_answer_is_asked_again(stand_ins, tmp_path):
    write_seeds(tmp_path / "s")
    run_binary(slurm, f"--sweep={tmp_path / 's'}")
    for tries, answers in ((2, True), (99, False)):
        program(
            stand_ins / "squeue",
            f"#!/bin/sh\necho >> {stand_ins}/asked\n"
            f'[ "$(wc -l < {stand_ins}/asked)" -gt {tries} ] || {{ echo "slurm_load_jobs error" >&2; exit 1; }}\n',
        )
        with contextlib.nullcontext() if answers else pytest.raises(ValueError, match="slurm_load_jobs error"):
            slurm._wait(tmp_path / "s", 0.01)
        assert (stand_ins / "asked").read_text().count("\n") == (3 if answers else 10)
        (stand_ins / "asked").unlink()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--sbatch=-c4", "--sbatch=-c4: expected one long option, such as --sbatch=--mem=16G"),
        ("--nodes=0", "--nodes=0: at least 1"),
        ("--max_parallel=-1", "--max_parallel=-1: at least 0"),
        ("--accelerator=h10:8", "--accelerator='h10' is unknown: did you mean 'h100'? known: a100, h100, h100-pcie, h200"),
        ("--accelerator=tpu-v5e:4", "--accelerator='tpu-v5e' is unknown; known: a100, h100, h100-pcie, h200"),
        ("--accelerator=h100:12", "--accelerator='h100:12': more than a host are whole hosts of 8"),
    ],
)
def test_bad_flags_are_refused(stand_ins, tmp_path, flag, message):
    write_seeds(tmp_path / "s")
    with pytest.raises(ValueError, match=re.escape(message)):
        run_binary(slurm, f"--sweep={tmp_path / 's'}", flag)
    assert not calls(stand_ins, "sbatch")


@pytest.mark.parametrize(
    ("accelerator", "expected"),
    [("h100:16", ["--nodes=2", "--gpus-per-node=h100:8"]), ("a100:2", ["--nodes=1", "--gpus-per-node=a100:2"])],
)
def test_nodes_and_gpus_come_from_the_table_of_targets(stand_ins, tmp_path, accelerator, expected):
    write_seeds(tmp_path / "s")
    run_binary(slurm, f"--sweep={tmp_path / 's'}", f"--accelerator={accelerator}")
    assert [each for each in calls(stand_ins, "sbatch") if each.startswith(("--nodes", "--gpus"))] == expected


@pytest.mark.parametrize("flag", ["--nodes=1", "--gpus=8"])
def test_nodes_and_gpus_are_given_once(stand_ins, tmp_path, flag):
    write_seeds(tmp_path / "s")
    with pytest.raises(ValueError, match="^--accelerator=h100:16 gives nodes and GPUs: leave out --nodes and --gpus$"):
        run_binary(slurm, f"--sweep={tmp_path / 's'}", "--accelerator=h100:16", flag)


def test_what_slurm_refuses_is_one_line(stand_ins, tmp_path, monkeypatch):
    write_seeds(tmp_path / "s")
    program(stand_ins / "sbatch", "#!/bin/sh\necho 'sbatch: error: first\nsbatch: error: invalid partition' >&2\nexit 1\n")
    with pytest.raises(ValueError, match="^sbatch: error: invalid partition$"):
        run_binary(slurm, f"--sweep={tmp_path / 's'}")
    with pytest.raises(ValueError, match="does not take a backslash"):
        slurm.submit(tmp_path / "a\\b", "heldout", ["x"], 0, [])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no sbatch on the PATH"):
        slurm.submit(tmp_path / "s", "heldout", ["x"], 0, [])


def test_more_rows_than_an_array_takes_are_several_arrays(stand_ins, tmp_path, capsys):
    names = write_seeds(tmp_path / "s", 5)
    (stand_ins / "scontrol.says").write_text("Configuration data\nMaxArraySize            = 2\nMaxJobCount = 3\n")
    run_binary(slurm, f"--sweep={tmp_path / 's'}", "--max_parallel=3")
    given = calls(stand_ins, "sbatch")
    assert [each for each in given if each.startswith("--array")] == ["--array=0-1%3", "--array=0-1%3", "--array=0-0%3"]
    assert [each for each in given if each.startswith("--dependency")] == ["--dependency=afterany:7"] * 2  # not the first
    lists = {path.stem: path.read_text().split() for path in (tmp_path / "s" / "slurm").glob("*.rows")}
    order = [each.removeprefix("--job-name=") for each in given if each.startswith("--job-name")]
    assert [row for name in order for row in lists[name]] == names and len(set(order)) == 3
    assert [line.split(":")[1].split(";")[0] for line in capsys.readouterr().out.splitlines()] == [
        " 2 of 5 rows",
        " 2 of 5 rows",
        " 1 of 5 rows",
    ]
    # All but the third row are in the queue, in whichever array.
    (stand_ins / "squeue.says").write_text(
        f"{order[0]}|0|RUNNING\n{order[0]}|1|PENDING\n{order[1]}|1|PENDING\n{order[2]}|0|PENDING\n"
    )
    run_binary(slurm, f"--sweep={tmp_path / 's'}")
    new = calls(stand_ins, "sbatch")[len(given) :]
    assert "--array=0-0" in new and not any(each.startswith("--dependency") for each in new)
    assert Path(new[-1]).read_text().split() == [names[2]]


@pytest.mark.parametrize(
    ("says", "size"), [("MaxArraySize = 5\n", 5), ("MaxArraySize = 0\n", 1), ("nothing\n", 1001), (None, 1001)]
)
def test_how_many_rows_an_array_takes(says, size, stand_ins):
    if says is None:
        program(stand_ins / "scontrol", "#!/bin/sh\necho 'slurm_load_ctl_conf error' >&2\nexit 1\n")
    else:
        (stand_ins / "scontrol.says").write_text(f"MaxArrayTasks = 9\n{says}")
    assert slurm.array_size() == size


def test_an_array_that_is_refused_leaves_those_before_it_known(stand_ins, tmp_path, capsys):
    names = write_seeds(tmp_path / "s", 3)
    (stand_ins / "scontrol.says").write_text("MaxArraySize = 2\n")
    program(
        stand_ins / "sbatch",
        f"#!/bin/sh\n[ -e {stand_ins}/full ] && {{ echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; }}\n"
        f"touch {stand_ins}/full; echo 7\n",
    )
    message = r"^sbatch: error: QOSMaxSubmitJobPerUserLimit \(2 of 3 rows are submitted, the same command does the others\)$"
    with pytest.raises(ValueError, match=message):
        run_binary(slurm, f"--sweep={tmp_path / 's'}")
    assert "job 7: 2 of 3 rows" in capsys.readouterr().out
    (first,) = [path.stem for path in (tmp_path / "s" / "slurm").glob("*.rows") if len(path.read_text().split()) == 2]
    (stand_ins / "squeue.says").write_text(f"{first}|0|RUNNING\n{first}|1|PENDING\n")
    assert set(slurm.queued(tmp_path / "s")) == set(names[:2])
    (stand_ins / "full").unlink()
    run_binary(slurm, f"--sweep={tmp_path / 's'}")
    assert "job 7: 1 of 3 rows" in capsys.readouterr().out


OUTER = {  # of an interactive session in an allocation, and of a user who filters what squeue shows
    "SLURM_JOB_ID": "99",
    "SLURM_CPUS_PER_TASK": "2",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x3",
    "SLURM_MEM_PER_NODE": "4096",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_EXPORT_ENV": "NONE",
    "SLURMD_NODENAME": "other",
    "SRUN_CPUS_PER_TASK": "7",
    "SQUEUE_STATES": "RUNNING",
    "PMI_RANK": "1",
    "PMIX_RANK": "1",
    "FINGERPRINT_PROCESSES": "2",
    "CUDA_VISIBLE_DEVICES": "3",
}
HANDED_ON = {"SBATCH_COMMENT": "mine", "SLURM_CONF": "slurm.conf", "SLURM_JWT": "token", "MY_SLURM_X": "1", "OMP_NUM_THREADS": "3"}


def test_what_belongs_to_an_outer_job_is_not_handed_on():
    assert slurm.environment(OUTER | HANDED_ON) == HANDED_ON
    own = {"CUDA_VISIBLE_DEVICES": "3"}  # of a user, outside of any job
    assert slurm.environment(own) == own


def test_every_command_of_slurm_is_called_without_it(stand_ins, tmp_path, monkeypatch):
    for name, value in (OUTER | HANDED_ON).items():
        monkeypatch.setenv(name, value)
    for name in ("sbatch", "squeue", "scontrol"):
        program(stand_ins / name, f"#!/bin/sh\nenv >> {stand_ins}/{name}.env\n[ {name} = sbatch ] && echo 7\nexit 0\n")
    write_seeds(tmp_path / "s")
    run_binary(slurm, f"--sweep={tmp_path / 's'}")
    slurm.queued(tmp_path / "s")
    for name in ("sbatch", "squeue", "scontrol"):
        found = dict(line.split("=", 1) for line in (stand_ins / f"{name}.env").read_text().splitlines())
        assert not found.keys() & OUTER.keys() and HANDED_ON.items() <= found.items()


# In place of Python: a launcher that writes its arguments, says that it is there, and ends as a file tells it to.
LAUNCHER = """#!/bin/sh
printf '%s\\0' "$PWD" "$@" > launcher.calls
trap 'echo USR1 >> launcher.signals; exit 75' USR1
trap 'echo TERM >> launcher.signals; exit 75' TERM
touch started
while [ ! -e status ]; do sleep 0.02; done
exit "$(cat status)"
"""


@pytest.mark.parametrize(
    ("come", "state", "status", "requeued"),
    [
        ("", "RUNNING", 0, False),
        ("", "RUNNING", 1, False),
        ("", "RUNNING", RUN_AGAIN, True),  # somebody stopped the training
        ("USR1", "RUNNING", RUN_AGAIN, True),  # the time limit is near
        ("TERM", "COMPLETING", RUN_AGAIN, False),  # cancelled
    ],
)
def test_a_task_runs_its_row_and_is_requeued_where_it_was_not_cancelled(stand_ins, tmp_path, come, state, status, requeued):
    checkout = tmp_path / ODD
    checkout.mkdir()
    python = program(checkout / "python 3", LAUNCHER)
    rows = checkout / "rows"
    rows.write_text("first\nsecond\nthird\n")
    (stand_ins / "squeue.says").write_text(state)
    variables = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    command = ["bash", str(slurm.SCRIPT), str(checkout), str(python), str(checkout / "s"), "valid", str(rows)]
    process = subprocess.Popen(command, env=os.environ | variables)
    while not (checkout / "started").exists():
        assert process.poll() is None
        time.sleep(0.02)
    if come:
        process.send_signal(getattr(signal, f"SIG{come}"))
        time.sleep(0.1)
    if come != "USR1":  # after that the launcher ends by itself
        (checkout / "status").write_text(str(status))
    assert process.wait(20) == status
    where, *arguments = calls(checkout, "launcher")
    assert where == str(checkout)
    expected = [f"--sweep={checkout / 's'}", "--split=valid", "--rows=second", "--through=srun --kill-on-bad-exit=0"]
    assert arguments == ["-m", "launch.local", *expected]
    told = checkout / "launcher.signals"
    assert (told.read_text() if told.exists() else "") == "USR1\n" * (come == "USR1")
    assert not (stand_ins / "scancel.calls").exists()
    assert calls(stand_ins, "scontrol") == ["requeue", "7_1"] * requeued


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment of a real Slurm of one node with two processors."""
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture
def on_cluster(cluster, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)


def job_of(output, name):
    """JOB_TASK of a row in the queue."""
    lists = {path.stem: path.read_text().split() for path in (output / "slurm").glob("*.rows")}
    for line in slurm.call("squeue", "--noheader", "--array", "--format=%j|%F|%K").split():
        job, number, task = line.split("|")
        if name in lists.get(job, []) and lists[job].index(name) == int(task):
            return f"{number}_{task}"
    raise AssertionError(f"{name} is not in the queue")


def pid_of(workdir):
    """The process that trains a row, or did."""
    return int((workdir / "lock").read_text().split()[1])


def has_pending(pid, number):
    """Whether a signal waits for a process that is stopped."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"ShdPnd:\s*(\w+)", status)[1], 16) >> (number - 1) & 1


def disturb(kind, output, name):
    """Stops a row in mid-training, yields until Slurm knows, and looks at what is left.

    `cancel` cancels its task, `kill` kills its process, `limit` is the signal that the time limit is near.
    """
    workdir = output / name
    pid = pid_of(workdir)
    os.kill(pid, signal.SIGSTOP)  # it would be done before Slurm has understood
    job, stopped = job_of(output, name), (workdir / "log.txt").read_text().count(STOPPED)
    if kind == "kill":
        os.kill(pid, signal.SIGKILL)
    elif kind == "cancel":
        slurm.call("scancel", job)  # the process goes on by a SIGCONT, and then has its SIGTERM
    else:
        # Once, as Slurm does near the limit: see slurm.sh on what scancel does where tasks are pending.
        process, begun = subprocess.Popen(["scancel", "--signal=USR1", "--batch", job]), time.monotonic()
        while not has_pending(pid, signal.SIGUSR1):
            assert time.monotonic() < begun + 120, "the signal did not come through"
            yield
        process.kill()
        process.wait()
        os.kill(pid, signal.SIGCONT)
    begun = told = time.monotonic()
    while slurm.queued(output).get(name) != ("pending" if kind == "limit" else None):
        assert time.monotonic() < begun + 300, f"{kind} did not come through"
        if kind == "cancel" and time.monotonic() > told + 30:  # Slurm can lose what it is told (seen twice); told again, it obeys
            slurm.call("scancel", job)
            told = time.monotonic()
        yield
    assert not local.finished(workdir, "heldout")
    if kind == "kill":
        assert json.loads((workdir / "failed.json").read_text())["error"] == "ended by SIGKILL"
    else:
        assert (workdir / "log.txt").read_text().count(STOPPED) > stopped
        assert not (workdir / "failed.json").exists()


def test_disturbed_on_a_real_cluster_a_sweep_ends_with_the_table_of_launch_local(on_cluster, data_dir, tmp_path, capsys):
    """Two rows, the first disturbed twice; `FINGERPRINT_FAULTS=full` makes them six with two seeds each."""
    # While one of many rows is disturbed, the others are not to come to their end.
    steps = 4000 if FULL_FAULTS else 600
    fields = {"num_steps": steps, "eval_every": steps // 2, "log_every": 5, "checkpoint_every": 20}
    rates, seeds = ((1, 2, 3, 4, 5, 6), (0, 1)) if FULL_FAULTS else ((1, 2), (0,))
    grid = [sweep.values("optimizer.learning_rate", *(rate / 1000 for rate in rates)), sweep.values("seed", *seeds)]
    rows = sweep.rows(CONFIG, sweep.product(*grid, *(sweep.values(*field) for field in fields.items())))
    here, there = tmp_path / "here", tmp_path / ODD
    for output in (here, there):
        sweep.write(output, data_dir, rows)
    plans = itertools.chain([["cancel", "limit"]], itertools.cycle([["kill"], ["limit"], ["cancel"]]))
    left = {row.name: list(plan) for row, plan in zip(rows, plans, strict=False)}
    at = dict.fromkeys(left, 30)  # the step at which a row is disturbed
    while any(left.values()):
        run_binary(slurm, f"--sweep={there}", "--max_parallel=2", "--time=20")
        happening = {}
        while queued := slurm.queued(there):
            running = [name for name, state in queued.items() if state == "running"]  # to look at all takes longer than a row
            for name in list(happening):
                if next(happening[name], "done") == "done":
                    del happening[name]
            for _ in range(20):
                for name in running:
                    if left[name] and name not in happening and (step := trainer.last_step(there / name)) >= at[name]:
                        if trainer.saved(there / name) and Path(f"/proc/{pid_of(there / name)}").exists():
                            at[name] = step + 100  # of the process that goes on, not of what this one still does
                            happening[name] = disturb(left[name].pop(0), there, name)
                            next(happening[name], None)
                time.sleep(0.01)
        for each in happening.values():
            assert next(each, "done") == "done"
        assert not [name for name, plan in left.items() if plan and local.finished(there / name, "heldout")]
    # What was killed has failed, what was cancelled is not finished: the same command does the rest.
    run_binary(slurm, f"--sweep={there}", "--wait=0.2")
    assert f"{len(rows)} rows are finished" in capsys.readouterr().out
    local.run_sweep(here, "heldout", 2)
    ours, expected = (collect.collect(output, "heldout", "accuracy", rows[0].group) for output in (there, here))
    assert ours == expected
    for row in rows:
        assert "resumes at step" in (there / row.name / "log.txt").read_text()
        assert trainer.history(there / row.name) == trainer.history(here / row.name)
        ours, expected = ((output / row.name / "predictions" / "heldout.csv").read_text() for output in (there, here))
        assert ours == expected


def test_processes_of_a_row_find_each_other_and_save_together(on_cluster, data_dir, tmp_path):
    fields = {"num_steps": 200, "eval_every": 100, "log_every": 5, "checkpoint_every": 20}
    rows = sweep.rows(CONFIG, sweep.product(*(sweep.values(*field) for field in fields.items())))
    sweep.write(tmp_path, data_dir, rows)
    (workdir,) = (tmp_path / row.name for row in rows)
    run_binary(slurm, f"--sweep={tmp_path}", "--tasks_per_node=2", "--time=20")
    while trainer.last_step(workdir) < 30 or not trainer.saved(workdir):
        assert slurm.queued(tmp_path), (workdir / "log.txt").read_text()
        time.sleep(0.01)
    for _ in disturb("limit", tmp_path, rows[0].name):
        time.sleep(0.02)
    run_binary(slurm, f"--sweep={tmp_path}", "--wait=0.2")
    starts = json.loads((workdir / "provenance.json").read_text())["starts"]
    assert [start["topology"] for start in starts] == ["2x1 cpu"] * 2 and starts[1]["step"] >= 30
    assert local.finished(workdir, "heldout")


def test_arrays_on_a_real_cluster_follow_each_other_and_know_nothing_of_an_outer_job(tmp_path, monkeypatch):
    """The launcher is a script that writes its environment; a task that comes too early would find the mark of another."""
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    out = tmp_path / "out"
    out.mkdir()
    lines = f"mkdir {out}/mark || touch {out}/together", f'env > "{out}/$SLURM_JOB_NAME.$SLURM_ARRAY_TASK_ID"', "sleep 0.3"
    python = program(tmp_path / "python", "\n".join(["#!/bin/sh", *lines, f"rmdir {out}/mark"]))
    names = write_seeds(tmp_path / "s", 5)
    monkeypatch.setattr(slurm.sys, "executable", str(python))
    with slurm_cluster.running(tmp_path, "MaxArraySize=2") as environment:
        for name, value in (OUTER | {"OMP_NUM_THREADS": "3"} | environment).items():
            monkeypatch.setenv(name, value)
        run_binary(slurm, f"--sweep={tmp_path / 's'}", "--max_parallel=1", "--sbatch=--cpus-per-task=1")
        assert set(slurm.queued(tmp_path / "s")) == set(names)
        slurm._wait(tmp_path / "s", 0.1)
    found = [
        dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line) for path in out.glob("fingerprint-*")
    ]
    assert len(found) == 5 and not (out / "together").exists()
    for each in found:
        assert each["SRUN_CPUS_PER_TASK"] == each["SLURM_CPUS_PER_TASK"] == "1" and each["SLURM_JOB_ID"] != "99"
        assert not each.keys() & (OUTER.keys() - {"SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", "SLURMD_NODENAME"})
        assert each["SLURMD_NODENAME"] != "other" and each["OMP_NUM_THREADS"] == "3"


def test_collect_shows_rows_under_way_and_what_failed_of_any_launcher(tmp_path):
    names = write_seeds(tmp_path / "s", 2)
    (tmp_path / "s" / "slurm").mkdir()
    (tmp_path / "s" / names[0]).mkdir()
    (tmp_path / "s" / names[0] / "failed.json").write_text('{"error": "srun: error: vm: task 0: Killed"}')
    (line,) = collect.collect(tmp_path / "s", "heldout", "accuracy")
    assert line["note"] == "seed 0 failed: srun: error: vm: task 0: Killed; seed 1 not finished"


def test_a_list_of_rows_that_is_none_of_a_job_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "slurm").mkdir()
    path = tmp_path / "slurm" / "fingerprint-x.rows"
    path.write_text("a")
    monkeypatch.setattr(slurm, "call", lambda *_: "fingerprint-x|7|RUNNING\n")
    with pytest.raises(ValueError, match="is not that of its job"):
        slurm.queued(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="a pipe, expected a file"):
        slurm.queued(tmp_path)
