"""Kills, signals, orphans, and two processes in one workdir."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from fingerprint_jax.runs import checkpoint
from fingerprint_jax.runtime.preemption import RUN_AGAIN
from tests.faults import trainer


def test_killed_at_any_moment_it_ends_with_the_same_bytes(whole, data_dir, tmp_path, counts, report):
    reference, expected, seconds = whole
    rng = np.random.default_rng(0)
    inside, before_first, lost = 0, 0, []
    moments = rng.uniform(0, seconds, counts(1, 50))
    for i, moment in enumerate(moments):
        workdir = tmp_path / str(i)
        process = trainer.start(data_dir, workdir)
        time.sleep(moment)
        process.kill()
        process.communicate()
        reached, begun = trainer.last_step(workdir), trainer.unfinished_saves(workdir)
        inside += bool(begun)
        usable = max(trainer.saved(workdir), default=0)
        before_first += not usable
        text = trainer.finish(data_dir, workdir)
        assert usable == 0 or f"resumes at step {usable}\n" in text or (workdir / "done").exists()
        last_begun = max([usable, *(int(name.partition(".")[0]) for name in begun)])
        assert last_begun - usable <= trainer.INTERVAL  # at most the save under way is lost
        lost.append(max(reached - usable, 0))
        assert trainer.state(workdir) == expected
        assert trainer.history(workdir) == trainer.history(reference)
    report(
        "SIGKILL at a moment drawn uniformly over the life of the process",
        f"{len(moments)}, {inside} of them inside a save, {before_first} before the first checkpoint",
        f"{len(moments)} ended with the same bytes and the same metrics; at most {max(lost)} steps were done again"
        f" (a save every {trainer.INTERVAL} steps)",
    )
    if len(moments) >= 50:
        assert inside >= 10


def test_a_signal_saves_the_step_it_came_at(whole, data_dir, tmp_path, counts, report):
    reference, expected, _ = whole
    rng = np.random.default_rng(1)
    targets, slowest = rng.integers(1, trainer.STEPS - 10, counts(1, 20)), 0.0
    for i, target in enumerate(targets):
        workdir = tmp_path / str(i)
        process = trainer.start(data_dir, workdir)
        while trainer.last_step(workdir) < target:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        process.send_signal((signal.SIGTERM, signal.SIGINT)[i % 2])
        begin = time.monotonic()
        _, text = process.communicate()
        slowest = max(slowest, time.monotonic() - begin)
        assert process.returncode == RUN_AGAIN, text
        match = re.search(r"main: .*: SIG(TERM|INT): saved at step (\d+); the same command continues the run\n$", text)
        assert match, text
        step = int(match[2])
        assert max(trainer.saved(workdir)) == step >= target and not trainer.unfinished_saves(workdir)
        # The step dispatched when the signal came: its metrics were read for the save, and no later one was begun.
        assert step - trainer.last_step(workdir) <= 1
        assert f"resumes at step {step}\n" in trainer.finish(data_dir, workdir)
        assert trainer.state(workdir) == expected
    assert slowest < 30
    report(
        "SIGTERM or SIGINT at a random step",
        len(targets),
        f"{len(targets)} saved at the step they were at, exit status {RUN_AGAIN}, within {slowest:.1f} s; same bytes at the end",
    )


def test_a_signal_before_the_first_step_says_run_me_again_too(data_dir, tmp_path):
    process = trainer.start(data_dir, tmp_path / "run")
    while not (tmp_path / "run" / "config.json").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.terminate()
    _, text = process.communicate()
    assert process.returncode == RUN_AGAIN, text
    assert "SIGTERM" in text.splitlines()[-1] and "the same command continues the run" in text.splitlines()[-1]


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended since
            for child in (task / "children").read_text().split():
                found += [int(child), *_descendants(int(child))]
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_a_killed_trainer_leaves_no_process_and_no_shared_memory(data_dir, tmp_path, counts, report):
    names = set()  # of the shared memory of each trainer: other tests beside this one have some, too
    trials = counts(2, 6)
    for i in range(trials):
        process = trainer.start(data_dir, tmp_path / str(i), "--config.data.workers=2", "--config.num_steps=10000")
        while trainer.last_step(tmp_path / str(i)) < 2:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        children = _descendants(process.pid)
        assert len(children) >= 2
        held = [os.readlink(path) for path in Path(f"/proc/{process.pid}/fd").iterdir() if os.path.lexists(path)]
        names |= {path for path in held if re.fullmatch("/dev/shm/fingerprint-[0-9a-f]{8}", path)}
        whole = i == trials - 1  # the session, and in it Python's resource tracker, as Slurm kills
        (os.killpg if whole else os.kill)(process.pid, signal.SIGKILL)
        process.communicate()
        patience = time.monotonic() + 10
        while alive := [pid for pid in children if Path(f"/proc/{pid}/cmdline").exists() and _running(pid)]:
            assert time.monotonic() < patience, alive
            time.sleep(0.05)
        if whole:
            trainer.finish(data_dir, tmp_path / "next", "--config.data.workers=1", "--config.num_steps=2")
    assert len(names) == trials
    assert not [path for path in Path("/dev/shm").iterdir() if any(Path(name).name in path.name for name in names)]
    report(
        "SIGKILL of a trainer with reader processes",
        f"{trials}, the last of its whole session",
        "no process and no shared memory left behind, after the last when the next training had started",
    )


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_second_trainer_is_refused_and_the_first_goes_on(whole, data_dir, tmp_path, report):
    first = trainer.start(data_dir, tmp_path)
    while not trainer.saved(tmp_path):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # it would be done before the second has started
    second = trainer.start(data_dir, tmp_path)
    _, text = second.communicate()
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert f"main: error: {tmp_path}: process {first.pid} on " in text and "is fitting this run; wait for it" in text
    _, text = first.communicate()
    assert first.returncode == 0, text
    assert trainer.state(tmp_path) == whole[1]
    report("a second trainer in the workdir", 1, "refused with the process that holds it; the first ended with the same bytes")


def test_a_reader_survives_the_removal_of_checkpoints(whole, data_dir, tmp_path, report):
    process = trainer.start(data_dir, tmp_path)
    reads, seen = 0, set()
    while process.poll() is None:
        if trainer.saved(tmp_path):
            found = trainer.state(tmp_path)
            seen.add(int(np.frombuffer(found["['step']"], np.int32)[0]))
            reads += 1
    assert process.returncode == 0 and reads
    removed = trainer.STEPS // trainer.INTERVAL - len(checkpoint.Checkpoints(tmp_path).manifests())
    assert trainer.state(tmp_path) == whole[1]
    report(
        "reading `latest` over and over while a training saves and removes",
        f"{reads} reads, {removed} checkpoints removed",
        f"{reads} restored whole, {len(seen)} different steps",
    )


def test_workers_and_the_compilation_cache_change_nothing(whole, data_dir, tmp_path, counts, report):
    _, expected, _ = whole
    cases = {"2 reader processes": (["--config.data.workers=2"], {}), "images on the device": (["--config.data.cache=device"], {})}
    if counts(False, True):
        cases |= {f"{n} reader processes": ([f"--config.data.workers={n}"], {}) for n in (1, 4)}
        cases["cold compilation cache"] = ([], {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")})
    for name, (flags, env) in cases.items():
        trainer.finish(data_dir, tmp_path / name.replace(" ", "-"), *flags, **env)
        assert trainer.state(tmp_path / name.replace(" ", "-")) == expected, name
    report("another way to the same result", ", ".join(cases), "the same bytes as without")


def test_what_is_not_finite_ends_in_one_line_and_leaves_the_checkpoints(data_dir, tmp_path, report):
    trainer.finish(data_dir, tmp_path, "--config.num_steps=10")
    before = trainer.state(tmp_path)
    flags = ("--config.num_steps=20", "--config.optimizer.learning_rate=1e30", "--allow_change=num_steps,optimizer.learning_rate")
    process = trainer.start(data_dir, tmp_path, *flags)
    _, text = process.communicate()
    assert process.returncode == 1 and "main: error: " in text and "step 12 is not finite" in text
    assert trainer.state(tmp_path) == before and max(trainer.saved(tmp_path)) == 10
    assert "Traceback" not in text and os.listdir(tmp_path / "checkpoints") != []
    report("a learning rate of 1e30 in mid-training", 1, "one line, exit status 1, parameters and checkpoints as before")
