"""Every system of both subtasks, shrunk to seconds: does each go from packed data to its figures?

    python -m launch.sweep --config=configs/quickstart.py:smoke --data_dir=$HOME/data --file=launch/ablations/systems.py \
        --output=sweeps/systems

The folder has the data sets of both subtasks and, for Neural Nexus' pretraining, of task images.
"""

from pathlib import Path

from launch.sweep import Overrides, values

STANDS_ON_RUNS = ("siamese_svm", "siamese_vote")  # which name finished runs


def sweep() -> list[Overrides]:
    """A run a config."""
    found = (path for task in ("subtask1", "subtask2") for path in sorted(Path("configs", task).glob("*.py")))
    return values("config", *(f"{path}:smoke" for path in found if path.stem not in ("__init__", *STANDS_ON_RUNS)))
