"""Retention, the meaning of best, and damage that is seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from fingerprint_jax import checkpoint


def _fill(tmp_path, values, best="max:accuracy"):
    checkpoints = checkpoint.Checkpoints(tmp_path, best)
    for step, value in enumerate(values, 1):
        checkpoints.save(step, {"w": jnp.full(3, float(step))}, {} if value is None else {"accuracy": value})
    checkpoints.wait()
    return checkpoints


def test_the_latest_two_and_the_best_are_kept(tmp_path):
    checkpoints = _fill(tmp_path, [0.5, 0.9, 0.4, None, 0.1])
    assert list(checkpoints.manifests()) == [2, 4, 5]
    assert checkpoints.resolve("best") == 2 and checkpoints.resolve("latest") == 5 and checkpoints.resolve("4") == 4
    with pytest.raises(ValueError, match=r"checkpoints are \[2, 4, 5\]"):
        checkpoints.resolve("3")
    sharding = SingleDeviceSharding(jax.devices()[0])
    state = checkpoints.restore(2, checkpoint.abstract({"w": jnp.zeros(3)}, sharding))
    np.testing.assert_array_equal(state["w"], np.full(3, 2.0))
    checkpoints.close()


def test_lower_is_better_when_the_config_says_so(tmp_path):
    checkpoints = _fill(tmp_path, [0.5, 0.9, 0.6], "min:accuracy")
    assert checkpoints.resolve("best") == 1
    checkpoints.close()


def test_damage_is_named_and_the_one_before_is_used(tmp_path, caplog):
    checkpoints = _fill(tmp_path, [0.1, 0.2, 0.3])
    checkpoints.close()
    victim = max((p for p in (tmp_path / "checkpoints" / "3").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    again = checkpoint.Checkpoints(tmp_path, "max:accuracy")
    assert again.resolve("latest") == again.resolve("best") == 2
    assert str(victim) in caplog.text
    with pytest.raises(ValueError, match="damaged"):
        again.resolve("3")
    again.prune()
    assert not (tmp_path / "checkpoints" / "3").exists()


def test_best_says_what_it_accepts():
    with pytest.raises(ValueError, match="max:accuracy"):
        checkpoint.parse_best("accuracy")
