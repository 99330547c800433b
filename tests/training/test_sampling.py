"""What generators begin with, and which runs are generators; test_generate.py has the images."""

import os

import jax
import numpy as np
import pytest

from fingerprint_jax import objectives
from fingerprint_jax.objectives import flow_matching, gan
from fingerprint_jax.training import sampling
from fingerprint_jax.training.sampling import noise

SHAPE = (5, 4, 1)


def test_the_noise_of_an_image_is_that_of_its_number():
    key = jax.random.key(4)
    found = noise(key, np.array([5, 2, 9]), SHAPE)
    np.testing.assert_array_equal(found[2], jax.random.normal(jax.random.fold_in(key, 9), SHAPE))
    np.testing.assert_array_equal(noise(key, np.array([9]), SHAPE)[0], found[2])


@pytest.mark.parametrize(
    ("objective", "given", "expected"),
    [
        (flow_matching, (0, ""), (25, "heun")),
        (flow_matching, (7, "euler"), (7, "euler")),
        (gan, (0, ""), (1, "")),
        (gan, (1, ""), (1, "")),
    ],
)
def test_the_way_from_noise_to_images_is_as_given_or_of_the_objective(objective, given, expected):
    assert issubclass(objective.Objective, objectives.Generative) and objective.Objective.way(*given) == expected


@pytest.mark.parametrize(
    ("objective", "given", "text"),
    [
        (flow_matching, (5, "rk4"), "solver='rk4' is unknown; known: heun, euler"),
        (gan, (2, ""), "steps=2: gan makes images in one step, give none"),
        (gan, (0, "heun"), "solver=heun: gan makes images in one step, give none"),
    ],
)
def test_a_way_that_there_is_not_is_one_line(objective, given, text):
    with pytest.raises(ValueError, match=text):
        objective.Objective.way(*given)


@pytest.mark.parametrize("record", [False, True])
def test_a_large_folder_of_somebody_else_is_refused_at_the_first_file(record, tmp_path, monkeypatch):
    for i in range(20):
        (tmp_path / f"{i}" / "deeper").mkdir(parents=True)
        (tmp_path / f"{i}" / "mine").touch()
    if record:
        (tmp_path / sampling.RECORD).touch()
    listed, scandir = [], os.scandir
    monkeypatch.setattr(sampling.os, "scandir", lambda path: (listed.append(path), scandir(path))[1])
    with pytest.raises(ValueError, match="which is not of this command: name a new folder"):
        sampling.check_folder(tmp_path, "output_dir")
    assert len(listed) <= 3
