"""What the user can mend is one line."""

import errno
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from unittest import mock

import pytest
from absl import flags
from ml_collections import ConfigDict

from fingerprint_jax import evaluate, main
from fingerprint_jax.evaluation import score
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import cli
from launch import collect
from tests import processes
from tests.conftest import ROOT, fit

QUICKSTART = "--config=configs/quickstart.py"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/quickstart.py", "--config.nofield=3"], "--config.nofield: the config has no field nofield"),
        (
            ["--config=configs/quickstart.py", "--config.optimzer.name=sgd"],
            "no field optimzer.name: did you mean --config.optimizer.name?",
        ),
        (
            ["--config=configs/subtask1/aimm_siamese.py", "--config.optimizer.name=sgd"],
            "did you mean --config.member.optimizer.name?",
        ),
        (["--config=configs/quickstart.py", "--config.seed=a"], "flag --config.seed=a: invalid literal"),
        (
            ["--config=configs/quickstart.py:smole"],
            "quickstart.py:smole: variant='smole' is unknown: did you mean 'smoke'? known: smoke",
        ),
        (["--config=configs/none.py"], "--config=configs/none.py: there is no such file"),
        (["--config=configs/quickstart.py"], "config.data_dir is empty: give the folder that `fingerprint_jax.pack` wrote"),
    ],
)
def test_errors_are_one_line_and_exit_status_1(flags, message, tmp_path):
    process = processes.Process("fingerprint_jax.main", *flags, f"--workdir={tmp_path / 'run'}")
    assert process.wait() == 1
    *before, last = process.communicate()[1].splitlines()
    assert last.startswith("main: error: ") and message in last and len(before) <= 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["views.flip", "augment.shift"])
def test_a_run_from_before_a_field_is_one_line_and_other_faults_are_not(field, data_dir, tmp_path):
    fit("configs/quickstart.py", data_dir, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    section, field = field.split(".")
    del config[section][field]
    path.write_text(json.dumps(config))
    values = flags.FlagValues()
    evaluate.define_flags(values)
    values(["evaluate", f"--workdir={tmp_path / 'run'}"])
    with mock.patch.object(flags, "FLAGS", values):
        with pytest.raises(ValueError, match=rf"run: its config, .* has no field {field} \(\w+.py, line \d+\): a run of an older"):
            with cli._fields_of_runs():
                _ = Run.load(tmp_path / "run").config[section][field]
        for fault in (lambda: {}["nofield"], lambda: values.nofield):
            with pytest.raises((AttributeError, KeyError), match="nofield"), cli._fields_of_runs():
                fault()
        listed = flags.FlagValues()
        collect.define_flags(listed)
        listed(["collect", f"--sweep={tmp_path}"])
        with mock.patch.object(flags, "FLAGS", listed):  # a folder of runs
            with pytest.raises(ValueError, match=rf"^{tmp_path}: its config, or that of a run it uses, has no field {field} "):
                with cli._fields_of_runs():
                    _ = Run.load(tmp_path / "run").config[section][field]
        given = flags.FlagValues()
        main.define_flags(given)
        given(["main", f"--workdir={tmp_path / 'run'}", f"--config={ROOT / 'configs/quickstart.py'}"])
        with mock.patch.object(flags, "FLAGS", given):  # the config of the command line may be at fault
            with pytest.raises(AttributeError, match="nofield"), cli._fields_of_runs():
                _ = ConfigDict().nofield
        path.unlink()  # then it is no matter of a run
        with pytest.raises(AttributeError, match="nofield"), cli._fields_of_runs():
            _ = ConfigDict().nofield


def test_what_a_terminal_obeys_is_printed_as_text():
    assert cli._line(ValueError("more\nfield \x1b]0;x\x07\x1b[2J=nan")) == r"field \x1b]0;x\x07\x1b[2J=nan"


def test_a_run_that_names_itself_is_one_line(data_dir, tmp_path):
    run = fit("configs/quickstart.py", data_dir, tmp_path / "run")
    config = json.loads((run.workdir / "config.json").read_text())
    (run.workdir / "config.json").write_text(json.dumps(config | {"init_from": str(run.workdir)}))
    with pytest.raises(ValueError, match="nested too deeply: does a run name itself, by ensemble.runs"), cli._fields_of_runs():
        score.evaluate(Run.load(run.workdir), "heldout")


FAULTS = """
import resource, sys
import numpy as np
from fingerprint_jax.runtime import cli

if sys.argv[1] == "keep":
    cli.keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**26, np.uint8)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("binary", "flag"), [("launch.kubernetes", "--claim"), ("fingerprint_jax.evaluate", "--coordinator")])
def test_help_shows_the_flags_that_other_modules_define_too(binary, flag):
    done = subprocess.run([sys.executable, "-m", binary, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"  {flag}:" in done.stdout and "--alsologtostderr" not in done.stdout


def test_memory_that_was_freed_is_taken_again_without_asking_linux():
    found = {}
    for what, more in (("keep", {}), ("leave", {}), ("keep", {"MALLOC_ARENA_MAX": "4"})):
        env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        command = [sys.executable, "-c", FAULTS, what]
        done = subprocess.run(
            command, cwd=ROOT, env=env | more | {"NUMPY_MADVISE_HUGEPAGE": "0"}, capture_output=True, text=True, check=True
        )
        found[what, bool(more)] = int(done.stdout)
    pages = 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert found["keep", False] < pages / 10
    assert found["leave", False] > pages / 2 and found["keep", True] > pages / 2  # a setting of the user's stays


def test_compiled_programs_are_kept_where_only_the_user_may_look(tmp_path, monkeypatch, caplog):
    assert cli.compiled_dir() is None  # the suite has a folder of its own
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".cache" / "fingerprint_jax" / platform.node()
    assert cli.compiled_dir() == path and path.stat().st_mode & 0o777 == 0o700 == path.parent.stat().st_mode & 0o777
    for folder in (path, path.parent):
        folder.chmod(0o770)
        assert cli.compiled_dir() is None and f"{folder} is open to others" in caplog.text
        folder.chmod(0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert cli.compiled_dir() == tmp_path / "other" / "fingerprint_jax" / platform.node()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cli.compiled_dir() is None


@pytest.mark.parametrize(
    "environment", [{"JAX_PLATFORMS": "cuda"}, {"JAX_PLATFORMS": "gpuu"}, {"JAX_PLATFORMS": "", "JAX_PLATFORM_NAME": "gpu"}]
)
def test_absent_devices_are_one_line_and_nothing_is_written(environment, data_dir, tmp_path):
    flags = [QUICKSTART, f"--config.data_dir={data_dir}", f"--workdir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "fingerprint_jax.main", *flags]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    given = ", ".join(f"{name}={value!r}" for name, value in environment.items())
    assert done.returncode == 1 and not done.stdout
    assert re.fullmatch(rf"main: error: {given}: no such devices here \(.+\); unset it, or .*JAX_PLATFORMS=cpu\n", done.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("binary", "flags"),
    [
        ("fingerprint_jax.evaluate", ["--workdir=x"]),
        ("fingerprint_jax.audit", ["--generated=x", "--used=x", "--not_used=x", "--output=x"]),
        ("launch.table", ["--file=x", "--data=a=x", "--output=x"]),
        ("launch.collect", ["--sweep=x"]),
    ],
)
def test_each_binary_that_computes_asks_for_the_devices_first(binary, flags):
    environment = os.environ | {"JAX_PLATFORMS": "cuda"}
    command = [sys.executable, "-m", binary, *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    name = binary.rpartition(".")[2]
    assert done.returncode == 1 and done.stderr.startswith(f"{name}: error: JAX_PLATFORMS='cuda': no such devices here (")
    assert len(done.stderr.splitlines()) == 1


def test_help_and_lists_need_no_device(tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cuda"}
    for binary, given in (("fingerprint_jax.main", ["--help"]), ("launch.sweep", [QUICKSTART, f"--output={tmp_path}"])):
        done = subprocess.run([sys.executable, "-m", binary, *given], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.stdout and "error" not in done.stderr


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["main", "--version"])
    cli.run("main", main.define_flags, main.main)
    assert capsys.readouterr().out == f"fingerprint_jax {metadata.version('fingerprint_jax')}\n"


def test_a_missing_flag_is_named_with_what_it_is():
    done = subprocess.run([sys.executable, "-m", "fingerprint_jax.main"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.startswith("main: error: missing: --config (The experiment; FILE:smoke shrinks it to seconds.); --workdir (")
    assert done.stderr.count("\n") == 1


def test_a_full_disk_is_named_where_the_error_does_not_say_it(tmp_path, monkeypatch):
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", str(tmp_path / "run" / "a"), "", flag_values=values)
    flags.DEFINE_string("data_dir", "", "", flag_values=values)
    values(["main"])
    monkeypatch.setattr(cli.flags, "FLAGS", values)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cli.shutil, "disk_usage", lambda path: usage._replace(free=10 if path == tmp_path else 2**30))
    with pytest.raises(OSError, match="No space") as raised, open("/dev/full", "w") as file:
        file.write("x")
    assert cli._line(raised.value) == f"[Errno 28] No space left on device; {tmp_path} is full"
    named = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/b")
    assert cli._line(named) == "[Errno 28] No space left on device: '/a/b'"
    assert cli._line(OSError(errno.EIO, "broken")) == "[Errno 5] broken"
