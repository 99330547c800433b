"""The log of a run."""

import logging
import os
import re
import sys
import time

import pytest

from fingerprint_jax import main
from fingerprint_jax.runtime import progress
from fingerprint_jax.runtime.preemption import Preempted
from fingerprint_jax.training import loop
from tests.test_evaluate import run_binary

OWN = logging.getLogger("fingerprint_jax")


@pytest.fixture(autouse=True)
def _begun(monkeypatch):
    """As of a process that has just begun; each test shows its log, as a binary does first."""
    monkeypatch.delenv(progress.LOGGED, raising=False)


def _texts(path):
    """The lines without their times, which are of now."""
    found = []
    for line in path.read_text().splitlines():
        clock, text = re.fullmatch(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (.*)", line).groups()
        assert abs(time.mktime(time.strptime(clock, "%Y-%m-%d %H:%M:%S")) - time.time()) < 60
        found.append(text)
    return found


@pytest.mark.parametrize(("number", "name"), [(0, "log.txt"), (2, "log-2.txt")])
def test_lines_wait_until_the_folder_is_ours_and_are_appended(number, name, tmp_path, monkeypatch, capfd):
    progress.show_log()
    monkeypatch.setattr("fingerprint_jax.runtime.distributed.index", lambda: number)
    begun = []
    for start in ("first", "second"):
        with progress.kept_log(tmp_path, lambda: bool(begun)):
            OWN.info("%s start", start)
            assert begun or not any(tmp_path.iterdir())
            begun.append(1)
            OWN.info("trains")
            OWN.debug("behind a bar")
    with progress.kept_log(tmp_path, lambda: True):
        OWN.info("done already")
    OWN.info("after")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    bar = [] if number else ["behind a bar"]
    assert _texts(tmp_path / name) == ["first start", "trains", *bar, "second start", "trains", *bar, "done already"]
    said = ["first start", "trains", "second start", "trains", "done already", "after"]
    assert capfd.readouterr().err.splitlines() == said


@pytest.mark.parametrize("kind", [ValueError, OSError, Preempted])
def test_the_error_that_ends_a_command_is_its_last_line(kind, tmp_path):
    progress.show_log()
    with pytest.raises(kind, match="bad"), progress.kept_log(tmp_path, lambda: True):
        raise kind("bad \x1b[31m")
    assert _texts(tmp_path / "log.txt") == [rf"{kind.__name__}: bad \x1b[31m"]


def test_an_error_of_the_code_has_its_traceback(tmp_path):
    progress.show_log()
    with pytest.raises(KeyError), progress.kept_log(tmp_path, lambda: True):
        _ = {}["missing"]
    text = (tmp_path / "log.txt").read_text()
    assert "KeyError: 'missing'" in text and 'test_progress.py", line' in text


def test_nothing_is_written_where_a_launcher_or_standard_error_does(tmp_path, monkeypatch):
    progress.show_log()
    monkeypatch.setenv(progress.LOGGED, "1")
    with progress.kept_log(tmp_path, lambda: True):
        OWN.info("to the launcher")
    assert not any(tmp_path.iterdir())
    monkeypatch.delenv(progress.LOGGED)
    before = os.dup(2)
    with open(tmp_path / "log.txt", "w") as file:
        os.dup2(file.fileno(), 2)  # as `2> log.txt` does
        with progress.kept_log(tmp_path, lambda: True):
            OWN.info("to the file already")
        os.dup2(before, 2)
        os.close(before)
    assert (tmp_path / "log.txt").read_text() in ("", "to the file already\n")  # without a time: not by us


@pytest.mark.parametrize("kind", ["link", "folder", "full"])
def test_a_log_that_cannot_be_written_is_one_warning(kind, tmp_path, capfd):
    progress.show_log()
    path = tmp_path / "log.txt"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        (tmp_path / "keys").write_text("mine")
        path.symlink_to(tmp_path / "keys")
    with progress.kept_log(tmp_path, lambda: True):
        if kind == "full":
            (handler,) = [each for each in OWN.handlers if isinstance(each, progress._Kept)]
            handler._file = open("/dev/full", "w")
        OWN.info("one")
        OWN.info("two")
    said = capfd.readouterr().err.splitlines()
    (warning,) = [line for line in said if "no line is added any more" in line]
    assert str(path) in warning and {"one", "two"} <= {*said}
    assert kind != "link" or (tmp_path / "keys").read_text() == "mine"


@pytest.mark.parametrize("before", ["", "log.txt"])
def test_a_run_has_its_log_and_a_start_that_fails_leaves_none(before, data_dir, tmp_path, monkeypatch):
    workdir, flags = tmp_path / "run", ["--config=quickstart:smoke", f"--config.data_dir={data_dir}"]
    flags += [f"--workdir={workdir}"]

    def binary(*more):
        monkeypatch.setattr(sys, "argv", ["main", *flags, *more])  # where the flags of a config are looked for
        run_binary(main, *flags, *more)

    if before:
        workdir.mkdir()
        (workdir / before).write_text("of somebody\n")

    def fails(run, *_):
        OWN.warning("begins")
        raise ValueError("this could not be known")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="could not be known"):
        patch.setattr(loop, "train", fails)
        binary()
    assert workdir.exists() == bool(before)
    if before:
        first, *added = (workdir / before).read_text().splitlines()
        assert first == "of somebody" and added[-1].endswith("ValueError: this could not be known")
        return
    binary("--dry_run")
    assert not workdir.exists()
    binary()
    lines = _texts(workdir / "log.txt")
    assert lines[0].startswith(f"{workdir} on ") and lines[-1].startswith(f"{workdir}: 4 steps in ")
    with pytest.raises(ValueError, match="config.seed is 7"):
        binary("--config.seed=7")
    assert _texts(workdir / "log.txt") == lines  # refused: not its own
