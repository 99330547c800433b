"""What the user can mend is one line."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/quickstart.py", "--config.nofield=3"], "the config has no field nofield"),
        (["--config=configs/quickstart.py", "--config.seed=a"], "flag --config.seed=a: invalid literal"),
        (["--config=configs/quickstart.py:small"], "config variant 'small' is unknown: use smoke, or none"),
        (["--config=configs/none.py"], "No such file or directory: 'configs/none.py'"),
        (["--config=configs/quickstart.py"], "config.data_dir is empty: give the folder that `fingerprint_jax.pack` wrote"),
    ],
)
def test_errors_are_one_line_and_exit_status_1(flags, message, tmp_path):
    command = [sys.executable, "-m", "fingerprint_jax.main", *flags, f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    *before, last = done.stderr.splitlines()
    assert last.startswith("main: error: ") and message in last and len(before) <= 1
    assert not (tmp_path / "run").exists()
