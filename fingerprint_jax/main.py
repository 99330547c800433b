"""Fits a run: python -m fingerprint_jax.main --config=configs/quickstart.py --config.data_dir=DATA --workdir=DIR."""

import logging
import sys
from pathlib import Path

import jax
from absl import flags

from fingerprint_jax import methods
from fingerprint_jax.runs import config_file
from fingerprint_jax.runs.run import Profile, Run
from fingerprint_jax.runtime import cli, distributed, environment, paths, plugins, preemption, targets
from fingerprint_jax.runtime.progress import kept_log, show_log
from fingerprint_jax.training import trackers

log = logging.getLogger("fingerprint_jax")


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    config_file.define_flag("config", "The experiment; FILE:smoke shrinks it to seconds.", values)
    paths.define("workdir", None, "Where the run lives. The same command continues it.", flag_values=values)
    flags.DEFINE_list("allow_change", [], "Fields of a stopped run that may change, or `data`.", flag_values=values)
    flags.DEFINE_bool(
        "dry_run", False, "Print parameters, FLOPs, memory and time of a step; nothing is trained or written.", flag_values=values
    )
    flags.DEFINE_string("target", None, "With --dry_run: devices to compile for, as h100:8 or tpu-v5e:4.", flag_values=values)
    flags.DEFINE_bool("profile", False, "Write a trace and figures of a few steps to WORKDIR/profile.", flag_values=values)
    flags.DEFINE_float(
        "stall_s", 600, "Show the stacks of all threads where a step takes this many seconds; 0: never.", 0, flag_values=values
    )
    trackers.define_flag(values)
    plugins.define_flag(values)
    distributed.define_flags(values)
    flags.mark_flags_as_required(["config", "workdir"], flag_values=values)


def main(values: flags.FlagValues) -> None:
    """One run, fitted; what the user can mend is one line and exit status 1."""
    show_log()
    target = _target(values)
    if target and not targets.compiles_here(target):
        sys.exit(targets.in_child(target, "fingerprint_jax.main", sys.argv[1:]))
    distributed.initialize("main", values)
    environment.self_test()
    preemption.stop_at_once()
    preemption.watch_steps(values.stall_s)
    if not values.workdir:
        raise ValueError("--workdir is empty: name the folder of the run")
    plugins.trust([*values.plugins, *plugins.packages(values.config)])
    profile = Profile(Path(values.workdir) / "profile") if values.profile else None
    shown = trackers.check(values.trackers)
    run = Run(values.config, values.workdir, allow_change=tuple(values.allow_change), profile=profile, trackers=shown)
    with kept_log(run.workdir, lambda: run.started):
        log.info("%s on %d %s", run.workdir, jax.device_count(), jax.default_backend())
        say = distributed.by_first(print)
        if values.dry_run:
            methods.check_decision(run)
            for what, figure in methods.describe(run, target):
                say(f"{what:24}{figure}")
            return
        methods.fit(run)
        if profile and not profile.begun:
            log.warning("--profile: nothing was trained, so nothing was profiled")
        say(f"fitted: {run.workdir}")


def _target(values: flags.FlagValues) -> targets.Target | None:
    if values.target is None:
        return None
    if not values.dry_run:
        raise ValueError("--target compiles and runs nothing: give --dry_run with it")
    return targets.parse(values.target)


def command() -> None:
    """The console script."""
    cli.run("main", define_flags, main)


if __name__ == "__main__":
    command()
