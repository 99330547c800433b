"""Retention, the meaning of best, and damage that is seen."""

import hashlib
import json
import math
import os
import shutil
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import SingleDeviceSharding

from fingerprint_jax.runs import checkpoint
from fingerprint_jax.runtime import files, preemption, sharding

ABSTRACT = sharding.abstract({"w": jnp.zeros(3)}, SingleDeviceSharding(jax.devices()[0]))


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


@pytest.mark.parametrize("after", [False, True], ids=["before anything is written", "when all is written"])
def test_a_second_signal_within_a_save_leaves_no_manifest_of_nothing(after, tmp_path, monkeypatch):
    """Seen: a manifest without files, which the same command could not go on from."""
    _fill(tmp_path, [0.5])
    checkpoints, save = checkpoint.Checkpoints(tmp_path), ocp.CheckpointManager.save

    def stopped(self, *given, **options):
        if after:
            save(self, *given, **options)
            self.wait_until_finished()
        raise preemption.Preempted("SIGTERM")

    monkeypatch.setattr(ocp.CheckpointManager, "save", stopped)
    with pytest.raises(preemption.Preempted):
        checkpoints.save(2, {"w": jnp.full(3, 2.0)}, {})
    checkpoints.close()
    assert list(checkpoints.manifests()) == [1] and checkpoints.resolve("latest") == 1
    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    (again := checkpoint.Checkpoints(tmp_path)).prune()
    again.save(2, {"w": jnp.full(3, 2.0)}, {})
    again.close()
    assert again.restore("latest", ABSTRACT)[0] == 2
    checkpoint._write_manifest(tmp_path / "digests" / "3.json", {"step": 3, "metrics": {}, "arrays": {}, "files": {}})
    assert again.resolve("latest") == 2  # one that an older version left
    again.prune()
    assert list(again.manifests()) == [1, 2] and (tmp_path / "damaged" / "3" / "3.json").exists()


def test_a_damaged_manifest_of_the_best_is_named(tmp_path, caplog):
    """It has no metrics any more, so that it is none of the best."""
    checkpoints = _fill(tmp_path, [0.5, 0.9, 0.4, 0.3])
    assert checkpoints.resolve("best") == 2
    (tmp_path / "digests" / "2.json").write_text("")
    assert checkpoints.resolve("best") in (3, 4)
    assert f"{tmp_path / 'digests' / '2.json'} is missing or damaged; step 2 is not used" in caplog.text


def test_steps_that_are_to_be_kept_stay(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, "max:accuracy", keep=(2, 3, 9))
    for step, accuracy in enumerate([0.9, 0.1, 0.2, 0.3, 0.4, 0.5], start=1):
        checkpoints.save(step, {"x": jnp.zeros(2)}, {"accuracy": accuracy})
    checkpoints.close()
    assert list(checkpoints.manifests()) == [1, 2, 3, 5, 6]


def test_what_was_not_written_to_its_end_is_removed(tmp_path):
    checkpoints = _fill(tmp_path, [0.1, 0.2])
    for name in ("3", "4.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp").symlink_to(tmp_path / "theirs")
    checkpoints.prune()
    assert (tmp_path / "theirs").exists()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]
    assert [p.name for p in (tmp_path / "damaged").iterdir()] == ["3"]  # Orbax had committed it


@pytest.mark.parametrize("reach", range(5))
def test_a_removal_that_was_begun_is_ended_and_what_is_damaged_is_kept(reach, tmp_path, monkeypatch, caplog):
    """Here the process dies in the removal of step 1, after it has removed no file, one, or all, but not the folder or the mark."""

    class Killed(BaseException):
        pass

    def dies(path, ignore_errors):
        files = sorted(p for p in path.rglob("*") if p.is_file())
        for file in files[: (0, 1, len(files))[reach]] if reach < 3 else []:
            file.unlink()
        if reach > 2:
            real(path)
        raise Killed

    real, checkpoints = shutil.rmtree, _fill(tmp_path, [0.1, 0.2])
    monkeypatch.setattr(checkpoint.shutil, "rmtree", dies)
    with pytest.raises(Killed):
        checkpoints.save(3, {"w": jnp.full(3, 3.0)}, {"accuracy": 0.3}, last=True)
    monkeypatch.undo()
    again = checkpoint.Checkpoints(tmp_path, "max:accuracy")
    _flip(_largest(tmp_path / "checkpoints" / "2"))
    assert again.restore("latest", ABSTRACT)[0] == 3 and list(again.manifests()) == [2, 3]
    assert "digests/1.json" not in caplog.text
    if reach == 4:  # no start lies between this removal and the next
        again.save(4, {"w": jnp.full(3, 4.0)}, {"accuracy": 0.4})
        again.close()
    else:
        again.prune()
        assert [p.name for p in (tmp_path / "damaged").iterdir()] == ["2"]
    left = [3, 4] if reach == 4 else [3]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [str(step) for step in left]
    assert sorted(p.name for p in (tmp_path / "digests").iterdir()) == [f"{step}.json" for step in left]


def test_a_mark_beside_a_manifest_removes_nothing(tmp_path):
    checkpoints = _fill(tmp_path, [0.1, 0.2])
    for name in ("2.removed", "a.removed", "-1.removed"):
        (tmp_path / "digests" / name).touch()
    checkpoints.prune()
    assert list(checkpoints.manifests()) == [1, 2] and not checkpoints.damage(2)


def test_a_part_that_is_left_out_is_not_read_and_still_has_to_fit(tmp_path):
    state = {"w": jnp.arange(3.0), "opt": {"mu": jnp.ones(2), "nu": jnp.zeros(2)}}
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    checkpoints.close()
    abstract = sharding.abstract(state, SingleDeviceSharding(jax.devices()[0]))
    step, found = checkpoints.restore("latest", abstract, without="opt")
    assert step == 1 and found.keys() == {"w"}
    np.testing.assert_array_equal(found["w"], state["w"])
    with pytest.raises(ValueError, match="opt.*mu.* is float32.2. in the checkpoint, missing in the model"):
        checkpoints.restore("latest", {"w": abstract["w"]})


def test_arrays_that_do_not_fit_are_named_with_both_shapes(tmp_path):
    checkpoints = _fill(tmp_path, [0.1])
    other = sharding.abstract({"w": jnp.zeros(4), "v": jnp.zeros(1)}, SingleDeviceSharding(jax.devices()[0]))
    with pytest.raises(ValueError, match=r"\['v'\] is missing in the checkpoint, float32\[1\] in the model"):
        checkpoints.restore("latest", other)
    del other["v"]
    with pytest.raises(ValueError, match=r"\['w'\] is float32\[3\] in the checkpoint, float32\[4\] in the model"):
        checkpoints.restore("latest", other)


@pytest.mark.parametrize("content", [b"[]", b"{}", b"[" * 100_000, b"x"])
def test_what_orbax_cannot_read_under_digests_that_hold_is_one_line(content, tmp_path):
    checkpoints = _fill(tmp_path, [0.1])
    (tmp_path / "checkpoints" / "1" / "default" / "_METADATA").write_bytes(content)
    manifest = json.loads((tmp_path / "digests" / "1.json").read_text())
    manifest["files"]["default/_METADATA"] = hashlib.sha256(content).hexdigest()  # by somebody else
    (tmp_path / "digests" / "1.json").write_text(json.dumps(manifest | {"sha256": files.seal(manifest)}))
    with pytest.raises(ValueError, match=r"checkpoints/1/default cannot be read \(.+\): use another --step, or train anew"):
        checkpoints.restore("latest", ABSTRACT)


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


UNFIT = ["a[1]", "a\\b", "\\", "x*", "**", "a?", "gs:", "ags:", os.fsdecode(b"\xff")]
FIT = [*"]{}#%&:;,=~^'\"`$!@()<>| \n\t", "-x", "x ", "x.", "...", "${HOME}", "%41", "s3:", "hf:x", "5", "x" * 255]
FIT += [unicodedata.normalize(form, "größe") for form in ("NFC", "NFD")] + ["a.orbax-checkpoint-tmp"]


@pytest.mark.parametrize("name", UNFIT)
def test_a_path_whose_checkpoints_cannot_be_read_again_is_refused(name, tmp_path):
    for place in (tmp_path / name, tmp_path / name / "runs" / "a"):
        with pytest.raises(ValueError, match="has .*: checkpoints cannot be read again from there; use another directory") as error:
            checkpoint.check_place(place)
        assert "\n" not in str(error.value)
    os.symlink(tmp_path / name, tmp_path / "link")
    checkpoint.check_place(tmp_path / "link")


@pytest.mark.parametrize("root", ["gs", "s3", "az", "hf"])
def test_roots_that_stand_for_buckets_are_refused(root, tmp_path):
    with pytest.raises(ValueError, match=f"has '/{root}/'"):
        checkpoint.check_place(checkpoint.Path(f"/{root}/runs"))
    checkpoint.check_place(tmp_path / root / "runs")


def test_the_path_counts_that_a_relative_one_stands_for(tmp_path, monkeypatch):
    (tmp_path / "[x]").mkdir()
    monkeypatch.chdir(tmp_path / "[x]")
    with pytest.raises(ValueError, match=r"/\[x\]/a/' has '\['"):
        checkpoint.check_place(checkpoint.Path("a"))


@pytest.mark.parametrize("name", FIT)
def test_checkpoints_of_other_paths_are_kept_and_read(name, tmp_path):
    checkpoint.check_place(tmp_path / name)
    _fill(tmp_path / name, [0.4, 0.3, 0.2, 0.1])
    again = checkpoint.Checkpoints(tmp_path / name, "max:accuracy")
    assert list(again.manifests()) == [1, 3, 4] and not again.damage(4)
    for which, step in (("best", 1), ("latest", 4)):
        assert again.restore(which, ABSTRACT)[0] == step
    again.prune()
    assert sorted(p.name for p in (tmp_path / name / "checkpoints").iterdir()) == ["1", "3", "4"]
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_run_that_was_moved_to_such_a_path_is_read_or_named(tmp_path):
    _fill(tmp_path / "a", [0.1])
    (tmp_path / "a").rename(tmp_path / "[1]")
    assert checkpoint.Checkpoints(tmp_path / "[1]").restore("latest", ABSTRACT)[0] == 1
    (tmp_path / "[1]").rename(tmp_path / "a\\b")
    with pytest.raises(ValueError, match="checkpoints cannot be read again"):
        checkpoint.Checkpoints(tmp_path / "a\\b").restore("latest", ABSTRACT)


def test_what_cannot_be_read_back_is_not_called_written(tmp_path):
    workdir = tmp_path / "a[1]"  # Orbax writes there, and finds nothing of it
    with pytest.raises(OSError, match="the checkpoint of step 1 could not be read back: NOT_FOUND"):
        _fill(workdir, [0.1])
    assert not checkpoint.Checkpoints(workdir).manifests() and not list((workdir / "checkpoints").iterdir())


@pytest.mark.parametrize("wrong", [1, 4])
def test_the_first_and_the_last_are_compared_with_what_was_saved(wrong, tmp_path, monkeypatch):
    """Here the disk holds another checkpoint than the one that was given to it."""
    _fill(tmp_path / "other", [0.5])
    wait, directory = ocp.CheckpointManager.wait_until_finished, tmp_path / "a" / "checkpoints"

    def exchanged(self):
        wait(self)
        for step in (2, wrong):  # the second is neither the first nor the last: its digests are those of what is there
            if directory == self.directory and (directory / str(step)).exists():
                shutil.rmtree(directory / str(step))
                shutil.copytree(tmp_path / "other" / "checkpoints" / "1", directory / str(step))

    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", exchanged)
    checkpoints = checkpoint.Checkpoints(tmp_path / "a")
    with pytest.raises(OSError, match=rf"step {wrong} could not be read back: \['w'\] is not what was saved"):
        for step in range(1, 5):
            checkpoints.save(step, {"w": jnp.full(3, 7.0 + step)}, {}, last=step == 4)
    assert wrong not in checkpoints.manifests() and not (directory / str(wrong)).exists()


def test_what_is_read_back_may_have_any_bits(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    state = {"step": jnp.int32(3), "nan": jnp.array([np.nan, -0.0]), "half": jnp.ones(2, jnp.bfloat16)}
    checkpoints.save(3, state, {}, last=True)
    assert list(checkpoints.manifests()) == [3]  # before `close`
    checkpoints.close()
