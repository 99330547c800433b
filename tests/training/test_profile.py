"""A profile tells what a step takes, and the run that is profiled is the same."""

import re

import jax
import pytest

from fingerprint_jax import methods
from fingerprint_jax.runs.run import Profile, Run
from fingerprint_jax.training import cost, profile
from tests.conftest import last_state, load_config, same_bytes


def _run(data_dir, workdir, asked=None, **fields):
    config = load_config("configs/quickstart.py")
    config.data_dir = data_dir
    config.update({"num_steps": 16, "eval_every": 8, "checkpoint_every": 16, "log_every": 1, "steps_per_dispatch": 1} | fields)
    return Run(config, workdir, profile=asked)


def _page(folder):
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", (folder / "summary.md").read_text(), re.MULTILINE)
    return dict(rows)


def test_a_profiled_run_is_the_same_and_its_page_tells_what_a_step_takes(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(profile.targets, "peak", {jax.devices()[0].device_kind: 1e12}.get)
    plain = _run(data_dir, tmp_path / "plain")
    seen = _run(data_dir, tmp_path / "seen", Profile(tmp_path / "seen" / "profile"))
    for run in (plain, seen):
        methods.get("gradient").fit(run)
    same_bytes(last_state(plain), last_state(seen))
    assert list((seen.workdir / "profile").rglob("*.xplane.pb")) and not (plain.workdir / "profile").exists()
    page = _page(seen.workdir / "profile")
    flops = cost.flops(seen)
    median, low, high, count = re.fullmatch(
        r"median (\S+) ms, (\S+) to (\S+) ms over (\d+) dispatches", page["time of a step"]
    ).groups()
    assert float(low) <= float(median) <= float(high)
    assert int(count) == 9  # of 16: 1 compiles, 9 follows an evaluation, 12 is done when the trace has begun, 13 to 16 come later
    assert page["FLOPs a step"] == f"{flops:.4g}, as XLA counts them"
    achieved = float(page["achieved"].removesuffix(" FLOP/s"))
    assert achieved == pytest.approx(flops / (1e-3 * float(median)), rel=0.01)
    assert page["of the peak in bfloat16"] == f"{achieved / 1e12 / jax.device_count():.2%} of {1e12 * jax.device_count():.4g}"
    assert 0 <= float(page["input wait"].partition("%")[0]) <= 100


def test_no_trace_is_written_through_a_link(data_dir, tmp_path):
    (tmp_path / "profile").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "profile" / "plugins").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="profile/plugins is a link, and nothing is written through one"):
        methods.get("gradient").fit(_run(data_dir, tmp_path / "run", Profile(tmp_path / "profile")))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_of_several_trainings_the_first_is_profiled_and_of_none_it_is_said(data_dir, tmp_path):
    asked = Profile(tmp_path / "profile")
    runs = [_run(data_dir, tmp_path / name, asked, num_steps=8, steps_per_dispatch=4) for name in "ab"]
    for run in runs:
        methods.get("gradient").fit(run)
    text = (tmp_path / "profile" / "summary.md").read_text()
    assert text.startswith(f"# Profile of {tmp_path / 'a'}\n")
    page = _page(tmp_path / "profile")
    assert page["steps a dispatch"] == "4" and page["time of a step"] == "not known: too few steps in one go"
    done = _run(data_dir, tmp_path / "a", Profile(tmp_path / "none"), num_steps=8, steps_per_dispatch=4)
    methods.get("gradient").fit(done)
    assert not (tmp_path / "none").exists() and not done.profile.begun
