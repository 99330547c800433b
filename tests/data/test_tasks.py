"""A task is a value: what its fields say of one another holds, and another one needs nothing else."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from fingerprint_jax.data import folders, tables, tasks
from fingerprint_jax.runs.views import View
from fingerprint_jax.stats import score_metrics


@pytest.mark.parametrize("task", tasks.TASKS.values(), ids=lambda task: task.name)
def test_the_fields_fit_one_another(task):
    labels = {split: {each.label for each in task.folders if each.split == split} for split in (task.target, task.test)}
    if task.folders:
        assert labels == {task.target: set(range(len(task.classes))), task.test: {-1}}
    assert not (task.membership and task.attribution)
    found = score_metrics.quick(np.array([1, 0]), np.array([[0.1, 0.9], [0.8, 0.2]]), task.watched)
    assert found.keys() == {task.watched}


def test_an_unknown_name_is_named():
    with pytest.raises(ValueError, match="task='subtask3' is unknown: did you mean 'subtask"):
        tasks.of("subtask3")


def test_another_task_needs_a_value_and_nothing_else(tmp_path, monkeypatch):
    scanner = [tasks.Official(name, "train_real", k, (name,), f"{name}/") for k, name in enumerate(("ct", "mr"))]
    task = tasks.Task(
        name="scanner",
        question="CT or MR?",
        layout="<train_dir>/{ct,mr}",
        target="train_real",
        test="test_real",
        classes=("ct", "mr"),
        folders=tuple(scanner),
    )
    monkeypatch.setitem(tasks.TASKS, "scanner", task)
    for name in ("ct", "mr"):
        (tmp_path / name).mkdir()
    found = folders.layout("scanner", tmp_path)
    assert [(f.path, f.split, f.label) for f in found] == [(tmp_path / "ct", "train_real", 0), (tmp_path / "mr", "train_real", 1)]
    with pytest.raises(ValueError, match="these are the folders of scanner: is --task=scanner meant"):
        folders.layout("subtask1", tmp_path)
    assert View(ConfigDict({"task": "scanner"})).target == "train_real"
    assert tables.styles("scanner") == ["int"]
