"""Retention, the meaning of best, and damage that is seen."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from fingerprint_jax import checkpoint

ABSTRACT = checkpoint.abstract({"w": jnp.zeros(3)}, SingleDeviceSharding(jax.devices()[0]))


def _fill(tmp_path, values, best="max:accuracy"):
    checkpoints = checkpoint.Checkpoints(tmp_path, best)
    for step, value in enumerate(values, 1):
        checkpoints.save(step, {"w": jnp.full(3, float(step))}, {} if value is None else {"accuracy": value})
    checkpoints.close()
    return checkpoints


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _largest(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_the_latest_two_and_the_best_are_kept(tmp_path):
    checkpoints = _fill(tmp_path, [0.5, 0.9, 0.4, None, 0.1])
    assert list(checkpoints.manifests()) == [2, 4, 5]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "5"]
    assert checkpoints.resolve("best") == 2 and checkpoints.resolve("latest") == 5 and checkpoints.resolve("4") == 4
    with pytest.raises(ValueError, match=r"step='3': .* has checkpoints \[2, 4, 5\]"):
        checkpoints.resolve("3")
    for which, step in (("best", 2), ("latest", 5), ("4", 4)):
        found, state = checkpoints.restore(which, ABSTRACT)
        assert found == step
        np.testing.assert_array_equal(state["w"], np.full(3, float(step)))


def test_without_a_best_the_latest_two_are_kept(tmp_path):
    checkpoints = _fill(tmp_path, [0.9, 0.5, 0.4], best="")
    assert list(checkpoints.manifests()) == [2, 3] and checkpoints.resolve("best") == 3


def test_a_falling_metric_over_many_saves_keeps_the_latest_and_the_true_best(tmp_path):
    checkpoints = _fill(tmp_path, [0.3, 0.9, *np.linspace(0.8, 0.1, 20).tolist(), math.nan, math.inf])
    assert list(checkpoints.manifests()) == [2, 23, 24]
    assert checkpoints.resolve("best") == 2 and checkpoints.resolve("latest") == 24


def test_lower_is_better_when_the_config_says_so(tmp_path):
    assert _fill(tmp_path, [0.5, 0.9, 0.6], "min:accuracy").resolve("best") == 1


def test_damage_is_named_and_the_one_before_is_used(tmp_path, caplog):
    checkpoints = _fill(tmp_path, [0.1, 0.2, 0.3])
    victim = _largest(tmp_path / "checkpoints" / "3")
    _flip(victim)
    assert checkpoints.resolve("latest") == checkpoints.resolve("best") == 2
    assert f"{victim} is damaged" in caplog.text
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.resolve("3")
    checkpoints.prune()
    assert list(checkpoints.manifests()) == [2]
    assert sorted(p.name for p in (tmp_path / "damaged" / "3").iterdir()) == ["3", "3.json"]
    (tmp_path / "digests" / "2.json").write_text("{}")
    with pytest.raises(ValueError, match="no usable checkpoint"):
        checkpoints.resolve("latest")


def test_a_manifest_that_changed_is_no_manifest(tmp_path, caplog):
    checkpoints = _fill(tmp_path, [0.1, 0.2, 0.3])
    path = tmp_path / "digests" / "2.json"
    path.write_text(path.read_text().replace("0.2", "0.9"))  # it would be the best
    assert checkpoints.resolve("best") == 3
    path.write_text((tmp_path / "digests" / "3.json").read_text())  # that of another step
    assert checkpoints.resolve("best") == 3
    with pytest.raises(ValueError, match="2.json is missing or damaged"):
        checkpoints.resolve("2")


def test_what_was_not_written_to_its_end_is_removed(tmp_path):
    checkpoints = _fill(tmp_path, [0.1, 0.2])
    for name in ("3", "4.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / name).mkdir()
    checkpoints.prune()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]
    assert [p.name for p in (tmp_path / "damaged").iterdir()] == ["3"]  # Orbax had committed it


def test_arrays_that_do_not_fit_are_named_with_both_shapes(tmp_path):
    checkpoints = _fill(tmp_path, [0.1])
    other = checkpoint.abstract({"w": jnp.zeros(4), "v": jnp.zeros(1)}, SingleDeviceSharding(jax.devices()[0]))
    with pytest.raises(ValueError, match=r"\['v'\] is missing in the checkpoint, float32\[1\] in the model"):
        checkpoints.restore("latest", other)
    del other["v"]
    with pytest.raises(ValueError, match=r"\['w'\] is float32\[3\] in the checkpoint, float32\[4\] in the model"):
        checkpoints.restore("latest", other)


def test_a_reader_survives_that_checkpoints_are_removed(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    reader = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, {"w": jnp.full(3, 1.0)}, {})
    checkpoints.wait()
    resolve, steps = reader.resolve, []

    def overtaken(which):
        step = resolve(which)
        if len(steps) < 3:  # while it reads, two more saves push out what it has chosen
            steps.append(step)
            for new in (step + 1, step + 2):
                checkpoints.save(new, {"w": jnp.full(3, float(new))}, {})
            checkpoints.wait()
        return step

    reader.resolve = overtaken
    step, state = reader.restore("latest", ABSTRACT)
    checkpoints.close()
    assert steps == [1, 3, 5] and step == 7
    np.testing.assert_array_equal(state["w"], np.full(3, 7.0))


def test_best_says_what_it_accepts():
    with pytest.raises(ValueError, match="max:accuracy"):
        checkpoint.parse_best("accuracy")
