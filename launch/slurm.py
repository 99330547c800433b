"""Submits the unfinished rows of a sweep to Slurm as a job array, or several; the same command submits what is left.

python -m launch.slurm --sweep=sweeps/lr --partition=gpu --gpus=1 --time=4:00:00 --max_parallel=8 --wait=30
"""

import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from absl import flags

from fingerprint_jax.runtime import cli, files, names, paths, preemption, targets
from fingerprint_jax.runtime.preemption import Preempted
from launch import local, sweep

SCRIPT = Path(__file__).with_name("slurm.sh")
ARRAY_SIZE = 1001  # Slurm's default of MaxArraySize

# What a session inside an allocation (salloc, srun --pty) has of its job, its step and its tasks, and what would change the answers
# of squeue. A job would take it for its own: sbatch hands its environment on.
OUTER = ("SLURM", "SRUN_", "SQUEUE_", "PMI", "FINGERPRINT_COORDINATOR", "FINGERPRINT_PROCESS")
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")  # by these commands find the cluster, and are let in
DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")  # that Slurm sets in a job


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """That of Slurm's commands, and so of the jobs: without what belongs to a job from which they are called."""
    outer = [name for name in environ if name.startswith(OUTER) and name not in KEPT]
    devices = DEVICES if "SLURM_JOB_ID" in environ else ()
    return {name: value for name, value in environ.items() if name not in outer and name not in devices}


def call(*command: str) -> str:
    """What a command of Slurm prints; raises ValueError with the last line of its complaint, or where it is not there."""
    if not shutil.which(command[0]):
        raise ValueError(f"no {command[0]} on the PATH: launch.slurm runs where jobs of Slurm are submitted")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(os.environ))
    if done.returncode:
        raise ValueError((done.stderr.strip() or f"{command[0]}: exit status {done.returncode}").splitlines()[-1])
    return done.stdout


def queued(output: Path) -> dict[str, str]:
    """{row: state} of the rows that Slurm has in its queue: pending, running, completing ...

    `<sweep>/slurm/<job name>.rows` has the rows of each array that was submitted, in the order of its tasks. A job is known by
    its name, which is drawn: a launcher that was killed while it submitted has lost nothing.
    """
    lists = {path.stem: files.read_text(path).split() for path in (output / "slurm").glob("fingerprint-*.rows")}
    if not lists:
        return {}
    found = call("squeue", "--noheader", "--array", f"--name={','.join(lists)}", "--format=%j|%K|%T")
    tasks = [line.split("|") for line in found.split()]
    try:
        return {lists[name][int(task)]: state.lower() for name, task, state in tasks}
    except (KeyError, IndexError):
        raise ValueError(f"{output / 'slurm'}: a file *.rows there is not that of its job: remove the jobs of this sweep") from None


def array_size() -> int:
    """How many tasks the cluster takes in an array; Slurm's default where it does not say."""
    try:
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"), re.MULTILINE)
    except ValueError:
        found = None
    return max(1, int(found[1])) if found else ARRAY_SIZE


def submit(output: Path, split: str, names: list[str], max_parallel: int, options: list[str], after: str = "") -> str:
    """Submits rows as one job array with these options of sbatch; returns the id of the job.

    With `max_parallel` the array waits for the end of the job `after`, so that the two together keep to it.
    """
    folder = (output / "slurm").absolute()
    if "\\" in str(folder):
        raise ValueError(f"--sweep={output}: sbatch does not take a backslash in the path of a job's output")
    name = f"fingerprint-{secrets.token_hex(4)}"
    rows = folder / f"{name}.rows"
    files.write_text(rows, "\n".join(names))
    array = f"--array=0-{len(names) - 1}" + (f"%{max_parallel}" if max_parallel else "")
    if max_parallel and after:
        options = [f"--dependency=afterany:{after}", *options]
    log = str(folder).replace("%", "%%") + "/%A_%a.txt"
    arguments = [os.getcwd(), sys.executable, str(output.absolute()), split, str(rows)]
    found = call("sbatch", "--parsable", f"--job-name={name}", array, f"--output={log}", *options, str(SCRIPT), *arguments)
    return found.strip().partition(";")[0]  # id;cluster


def options(values: flags.FlagValues) -> list[str]:
    """The options of sbatch that the flags stand for; raises ValueError for a flag out of its range."""
    for flag, least in (("nodes", 1), ("tasks_per_node", 1), ("grace", 1), ("max_parallel", 0), ("wait", 0)):
        if getattr(values, flag) < least:
            raise ValueError(f"--{flag}={getattr(values, flag)}: at least {least} is needed")
    out = ["--requeue", "--open-mode=append", f"--signal=B:USR1@{values.grace}"]
    nodes, gpus = shape(values)
    out += [f"--nodes={nodes}", f"--ntasks-per-node={values.tasks_per_node}"]
    given = {"partition": values.partition, "account": values.account, "time": values.time, "gpus-per-node": gpus}
    out += [f"--{option}={value}" for option, value in given.items() if value]
    if wrong := [each for each in values.sbatch if not re.match("--[a-z]", each)]:
        raise ValueError(f"--sbatch={wrong[0]}: expected one long option, such as --sbatch=--mem=16G")
    return out + values.sbatch


def shape(values: flags.FlagValues) -> tuple[int, str]:
    """Nodes of a row and GPUs of each; raises ValueError for devices that are none of Slurm's, or given in two ways."""
    text = values.accelerator
    if not text:
        return values.nodes, values.gpus
    if values["nodes"].present or values.gpus:
        raise ValueError(f"--accelerator={text} gives nodes and GPUs: leave out --nodes and --gpus")
    names.check("--accelerator", text.partition(":")[0], [device.name for device in targets.DEVICES if device.gpu])
    target = targets.parse(text, "--accelerator")
    return target.hosts, f"{target.device.name}:{target.count // target.hosts}"


def _wait(output: Path, seconds: float) -> None:
    """Returns when no row is in the queue. A controller that does not answer, since it restarts, say, is asked ten times."""
    left = 10
    while True:
        try:
            if not queued(output):
                return
            left = 10
        except ValueError:
            left -= 1
            if not left:
                raise
        time.sleep(seconds)


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    paths.define("sweep", None, "The directory that launch.sweep wrote.", required=True, flag_values=values)
    flags.DEFINE_string("split", "heldout", "heldout, valid or a packed split.", flag_values=values)
    flags.DEFINE_string("partition", "", "Slurm's partition.", flag_values=values)
    flags.DEFINE_string("account", "", "Whom the jobs are charged to.", flag_values=values)
    flags.DEFINE_string("time", "", "Limit of one task, in sbatch's way; a row that needs longer is requeued.", flag_values=values)
    flags.DEFINE_integer("grace", 120, "Seconds before that limit at which a row is told to save.", flag_values=values)
    flags.DEFINE_string("accelerator", "", "GPUs of a row, such as h100:16: its nodes, and the GPUs of each.", flag_values=values)
    flags.DEFINE_string("gpus", "", "GPUs of each node, such as 4 or a100:4.", flag_values=values)
    flags.DEFINE_integer("nodes", 1, "Nodes of a row.", flag_values=values)
    flags.DEFINE_integer("tasks_per_node", 1, "Processes of a row on each node.", flag_values=values)
    flags.DEFINE_multi_string("sbatch", [], "Any other option, such as --sbatch=--mem=16G.", flag_values=values)
    flags.DEFINE_integer("max_parallel", 0, "Rows that run at the same time; 0: as many as fit.", flag_values=values)
    flags.DEFINE_float("wait", 0, "Look every this many seconds until no row is in the queue; 0: do not wait.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Submits what is neither finished nor in the queue; with --wait, a row that failed makes the exit status 1."""
    preemption.stop_at_once()
    output, given = Path(values.sweep), options(values)
    rows = sweep.read(output)[1]
    local.check_folders(output, rows)
    (output / "slurm").mkdir(exist_ok=True)
    with files.locked(output / "slurm" / "lock", f"{output}: %s is submitting this sweep; wait for it"):
        under_way = queued(output)  # before the look at what is finished: a row that ends in between is
        for name, state in under_way.items():
            print(f"{state:11}{name}")
        left = [row.name for row in rows if row.name not in under_way and not local.finished(output / row.name, values.split)]
        size, job = array_size() if left else 1, ""
        for start in range(0, len(left), size):
            part = left[start : start + size]
            try:
                job = submit(output, values.split, part, values.max_parallel, given, after=job)
            except ValueError as error:
                if not start:
                    raise
                raise ValueError(f"{error} ({start} of {len(left)} rows are submitted, the same command does the others)") from None
            print(f"job {job}: {len(part)} of {len(rows)} rows; what its tasks say is in {output}/slurm/{job}_*.txt", flush=True)
    if values.wait:
        _wait(output, values.wait)
    elif left or under_way:
        return
    failed = [row.name for row in rows if (output / row.name / "failed.json").exists()]
    if failed:
        raise ValueError(f"{len(failed)} of {len(rows)} rows failed: {', '.join(failed)}; each has a log.txt, and is tried again")
    if missing := [row.name for row in rows if not local.finished(output / row.name, values.split)]:
        raise Preempted(f"{len(missing)} of {len(rows)} rows are not finished: {', '.join(missing)}; the same command goes on")
    print(f"{len(rows)} rows are finished: {local.collected_by(values.sweep, values.split)}")


def command() -> None:
    """The console script."""
    cli.run("slurm", define_flags, main)


if __name__ == "__main__":
    command()
