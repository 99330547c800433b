"""Images of a generator: the same for the same number, whatever was made before, and nothing of anybody's is touched."""

import json
import os
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from fingerprint_jax import generate
from fingerprint_jax.data import images, packing
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import preemption
from fingerprint_jax.training import inference, sampling
from fingerprint_jax.training.model import model_of
from tests.conftest import ROOT, drawn, load_config

CONFIG = "configs/generators/flow.py"


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory) -> Run:
    """A generator of 48 px."""
    return drawn(load_config(CONFIG), data_dir, tmp_path_factory.mktemp("flow") / "run", steps=(2, 4))


@pytest.fixture(scope="module")
def conditional(data_dir, tmp_path_factory) -> Run:
    config = load_config(CONFIG)
    config.objective.conditional = True
    return drawn(config, data_dir, tmp_path_factory.mktemp("conditional") / "run")


@pytest.fixture(scope="module")
def adversarial(data_dir, tmp_path_factory) -> Run:
    return drawn(load_config("configs/generators/gan.py"), data_dir, tmp_path_factory.mktemp("gan") / "run")


@pytest.fixture
def command(monkeypatch):
    monkeypatch.setattr(preemption, "stop_at_once", lambda: None)

    def call(run, output, count=5, **options):
        values = flags.FlagValues()
        generate.define_flags(values)
        given = {"workdir": run.workdir, "output_dir": output, "count": count, "steps": 2, "solver": "euler", "batch": 2} | options
        values([sys.argv[0], *(f"--{name}={value}" for name, value in given.items() if value is not None)])
        generate.main(values)

    return call


def _files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def test_an_image_is_the_flow_of_its_noise_with_the_averaged_weights(run, command, tmp_path):
    command(run, tmp_path / "out", seed=3, steps=1, solver="heun")
    assert sorted(_files(tmp_path / "out")) == [f"{i:06d}.png" for i in range(5)]
    model, (step, state) = model_of(run), inference.restore(run)
    weights = model.weights(state)
    assert any(np.any(np.asarray(weights[0][name]) != np.asarray(state["params"][name])) for name in weights[0])
    z = sampling.noise(jax.random.key(3), np.arange(5), (48, 48, 1))

    @jax.jit
    def flow(z):
        net = model.merge(*weights)
        first = net(z, np.zeros(5, np.float32), np.full(5, -1), train=False)
        return z + (first + net(z + first, np.ones(5, np.float32), np.full(5, -1), train=False)) / 2

    expected = np.clip(np.rint((np.asarray(flow(z)) + 1) * 127.5), 0, 255)[..., 0]
    for i in range(5):
        with Image.open(tmp_path / "out" / f"{i:06d}.png") as image:
            assert (image.mode, image.size) == ("L", (48, 48))
            assert np.abs(np.asarray(image, int) - expected[i]).max() <= 1  # rounding
    record = json.loads((tmp_path / "out" / sampling.RECORD).read_text())
    assert record["run"] == str(run.workdir) and (record["step"], record["seed"], record["solver"]) == (step, 3, "heun")


def test_a_gan_makes_images_in_one_step(adversarial, command, tmp_path):
    command(adversarial, tmp_path / "out", steps=None, solver=None)
    model, weights = model_of(adversarial), model_of(adversarial).weights(inference.restore(adversarial)[1])
    z = sampling.noise(jax.random.key(0), np.arange(5), (8,))
    shown = np.asarray(jax.jit(lambda z: model.merge(*weights).made(z, np.full(5, -1)))(z))
    expected = np.clip(np.rint((shown + 1) * 127.5), 0, 255)[..., 0]
    assert np.abs(_pixels(tmp_path / "out") - expected).max() <= 1 and np.ptp(expected, axis=0).max() > 10
    record = json.loads((tmp_path / "out" / sampling.RECORD).read_text())
    assert (record["steps"], record["solver"]) == (1, "")
    for options, text in (({"solver": None}, "steps=2: gan"), ({"steps": None}, "solver=euler: gan")):
        with pytest.raises(ValueError, match=f"{text} makes images in one step, give none"):
            command(adversarial, tmp_path / "out", **options)


def _pixels(folder):
    return np.stack([np.asarray(Image.open(path), int) for path in sorted(folder.glob("*.png"))])


def test_an_image_is_the_same_whatever_the_batch_and_what_was_there(run, command, tmp_path, capsys):
    command(run, tmp_path / "two")
    whole = _files(tmp_path / "two")
    command(run, tmp_path / "one", count=3, batch=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").glob("*.png")}
    (tmp_path / "one" / "000001.png").write_bytes(whole["000001.png"][:100])  # cut short
    (tmp_path / "one" / ".000004.png.77.tmp").write_bytes(b"x")  # what a kill leaves
    (tmp_path / "one" / ".DS_Store").touch()
    command(run, tmp_path / "one", batch=4)
    assert capsys.readouterr().out.endswith("/one, 3 images made, 2 were there\n")
    assert not list((tmp_path / "one").glob(".*.tmp"))
    # Sums of other batches may be rounded otherwise.
    assert len(_files(tmp_path / "one")) == 5 and np.abs(_pixels(tmp_path / "one") - _pixels(tmp_path / "two")).max() <= 1
    for name in ("000000.png", "000002.png"):
        assert (tmp_path / "one" / name).stat().st_mtime_ns == before[tmp_path / "one" / name]


def test_images_of_an_older_folder_under_a_newer_record_are_made_anew(run, command, tmp_path, capsys):
    """As after a copy over a folder of another generator that was cut off: what comes first of it vouches for nothing."""
    command(run, tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "mixed")
    other = np.zeros((48, 48), np.uint8)
    for name in ("000001.png", "000003.png"):
        images.save(tmp_path / "mixed" / name, other)
    capsys.readouterr()
    command(run, tmp_path / "mixed")
    said = capsys.readouterr()
    assert said.out.endswith("/mixed, 2 images made, 3 were there\n")
    assert "mixed: 000001.png is not what is made here, nor are 1 others: made anew" in said.err
    assert np.abs(_pixels(tmp_path / "mixed") - _pixels(tmp_path / "new")).max() <= 1
    for content in (None, '{"of": "another"}\n["000000.png", "x"]\n'):  # of the older folder, or not copied yet
        (tmp_path / "mixed" / sampling.DIGESTS).unlink()
        if content:
            (tmp_path / "mixed" / sampling.DIGESTS).write_text(content)
        command(run, tmp_path / "mixed")
        assert capsys.readouterr().out.endswith("/mixed, 5 images made, 0 were there\n")
    command(run, tmp_path / "mixed")
    assert capsys.readouterr().out.endswith("/mixed, 0 images made, 5 were there\n")
    with (tmp_path / "mixed" / sampling.DIGESTS).open("a") as file:
        file.write("3\n")
    with pytest.raises(ValueError, match="digests: 3 is no image and digest: remove the line"):
        command(run, tmp_path / "mixed")


def test_two_devices_share_a_batch(run, command, tmp_path):
    command(run, tmp_path / "here", count=3, steps=1)
    flags = [
        f"--workdir={run.workdir}",
        f"--output_dir={tmp_path / 'there'}",
        "--count=3",
        "--steps=1",
        "--solver=euler",
        "--batch=2",
    ]
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "fingerprint_jax.generate", *flags], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.endswith("there, 3 images made, 0 were there\n"), done.stderr
    assert np.abs(_pixels(tmp_path / "here") - _pixels(tmp_path / "there")).max() <= 1


def test_a_stopped_command_goes_on_to_the_same_files(run, command, tmp_path, monkeypatch):
    command(run, tmp_path / "whole")
    real, calls = sampling.Sampler.__call__, []

    def stopped(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise preemption.Preempted("SIGTERM")
        return real(self, *args)

    monkeypatch.setattr(sampling.Sampler, "__call__", stopped)
    with pytest.raises(preemption.Preempted):
        command(run, tmp_path / "halves")
    assert 0 < len(_files(tmp_path / "halves")) < 5
    command(run, tmp_path / "halves")
    assert _files(tmp_path / "halves") == _files(tmp_path / "whole")


def test_classes_take_turns_in_a_folder_each_or_there_is_one(conditional, command, tmp_path):
    command(conditional, tmp_path / "all", count=7)
    found = _files(tmp_path / "all")
    assert sorted(found) == sorted(f"t{i % 5 + 1}/00000{i}.png" for i in range(7))
    command(conditional, tmp_path / "one", count=2, label="t2")
    one = _files(tmp_path / "one")
    assert sorted(one) == ["t2/000000.png", "t2/000001.png"]
    assert one["t2/000001.png"] == found["t2/000001.png"] and one["t2/000000.png"] != found["t1/000000.png"]
    with pytest.raises(ValueError, match="--label='t9' is unknown.*t1, t2"):
        command(conditional, tmp_path / "none", label="t9")
    assert not (tmp_path / "none").exists()


def test_a_class_of_a_stranger_leads_nowhere(conditional):
    for name in ("../up", "/root", ""):
        source = types.SimpleNamespace(summary={"classes": ["t1", name]}, classes=("t1", name))
        with pytest.raises(ValueError, match="can be no folder below --output_dir"):
            generate._wanted(types.SimpleNamespace(config=conditional.config, source=source, task=source), 1, "t1")


def test_what_is_made_can_be_packed(conditional, command, phantoms, tmp_path):
    train = tmp_path / "train"
    shutil.copytree(phantoms["subtask2"] / "train" / "real", train / "real")
    command(conditional, train / "generated", count=10, steps=1)
    packing.pack("subtask2", tmp_path / "data", train, strict=True)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("seed", 1, "its images are of seed 0 of .*, not 1: give the same, or name a new --output_dir"),
        ("steps", 3, "its images are of steps 2 of .*, not 3"),
        ("solver", "heun", "its images are of solver 'euler' of .*, not 'heun'"),
        ("step", 2, "its images are of step 4 of .*, not 2"),
    ],
)
def test_other_images_in_the_same_folder_are_refused(run, command, tmp_path, field, value, text):
    command(run, tmp_path / "out", count=1)
    before = _files(tmp_path / "out")
    with pytest.raises(ValueError, match=text):
        command(run, tmp_path / "out", count=2, **{field: value})
    assert _files(tmp_path / "out") == before


def test_other_data_where_those_of_the_run_lay_are_refused(run, command, phantoms, tmp_path):
    """A U-Net takes images of any size, and what lies there says which."""
    command(run, tmp_path / "out", count=1)
    before = _files(tmp_path / "out")
    packing.pack("images", tmp_path / "other", phantoms["subtask2"] / "train" / "generated")
    shutil.copytree(run.workdir, copied := tmp_path / "run")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"data_dir": str(tmp_path / "other")}))
    with pytest.raises(ValueError, match=f"{copied} was started with another data set than that of {tmp_path / 'other'}"):
        command(Run.load(copied), tmp_path / "out", count=2)
    assert _files(tmp_path / "out") == before


def test_a_folder_of_somebody_else_is_refused_and_left_as_it_is(run, command, tmp_path):
    for name in ("000000.png", "notes.txt", "sub"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / name
        path.mkdir() if name == "sub" else path.write_bytes(b"mine")
        with pytest.raises(ValueError, match=f"--output_dir=.* has '{name}', which is not of this command: name a new folder"):
            command(run, tmp_path / name)
        assert [path.name for path in (tmp_path / name).iterdir()] == [name]
    command(run, tmp_path / "out", count=1)
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(ValueError, match="has 'notes.txt'"):
        command(run, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").unlink()
    for name, place in (("000000.png", os.mkfifo), ("000003.png", os.mkdir), (".000004.png.77.tmp", os.mkdir)):
        (tmp_path / "out" / name).unlink(missing_ok=True)
        place(tmp_path / "out" / name)
        with pytest.raises(ValueError, match=f"has '{name}', which is not of this command"):
            command(run, tmp_path / "out")
        shutil.move(tmp_path / "out" / name, tmp_path / "aside")
        (tmp_path / "aside").rmdir() if (tmp_path / "aside").is_dir() else (tmp_path / "aside").unlink()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="a file is there, name a folder"):
        command(run, tmp_path / "file")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / sampling.RECORD).symlink_to(tmp_path / "file")
    with pytest.raises(ValueError, match=f"has '{sampling.RECORD}'"):
        command(run, tmp_path / "links")


def test_what_makes_no_images_is_one_line(run, trained, command, tmp_path):
    with pytest.raises(ValueError, match="a run of softmax, which makes no images: give one of flow_matching or gan"):
        command(Run.load(trained), tmp_path / "out")
    with pytest.raises(ValueError, match="was trained without labels"):
        command(run, tmp_path / "out", label="t1")
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(run.workdir / "config.json", begun)
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        command(Run.load(begun), tmp_path / "out")
    for options in ({"count": 0}, {"steps": 0}, {"batch": 0}, {"seed": -1}, {"count": 10**7}):
        with pytest.raises(flags.IllegalFlagValueError):
            command(run, tmp_path / "out", **options)
    for options, text in (({"step": 7}, "step='7'"), ({"solver": "rk4"}, "solver='rk4' is unknown; known: heun, euler")):
        with pytest.raises(ValueError, match=text):
            command(run, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_part_of_a_file(run, command, tmp_path, monkeypatch):
    def full(self, path, format):
        path.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left on device"):
        command(run, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {sampling.RECORD, sampling.DIGESTS, sampling.LOCK}
