"""Renders the unfinished rows of a sweep as JobSets, one a row, for `kubectl apply`.

python -m launch.kubernetes --sweep=sweeps/lr --path=/mnt/sweeps/lr --claim=fingerprint --mount=/mnt --image=IMAGE \
    --accelerator=h100:1 --output=lr.yaml
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from absl import flags

from fingerprint_jax.runtime import files, names, paths, targets
from fingerprint_jax.runtime.preemption import RUN_AGAIN
from launch import local, sweep

TEMPLATE = Path(__file__).with_name("jobset.yaml")
PORT = 8476  # of process 0, where the others meet it
LONGEST_NAME = 40  # of a JobSet; pods add -row-0-<process>-<5 letters>, and a DNS label has at most 63
GPU, TPU = "cloud.google.com/gke-accelerator", "cloud.google.com/gke-tpu-accelerator"  # labels of GKE's nodes
TOPOLOGY = "cloud.google.com/gke-tpu-topology"
# What GKE calls the devices of `runtime/targets.py` that it has: "Plan TPUs in GKE"
# (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus), "GPU platforms" (cloud.google.com/compute/docs/gpus), and
# src/xpk/core/system_characteristics.py of github.com/AI-Hypercomputer/xpk, Google's own launcher, which has the labels too.
GKE = {"a100": "nvidia-a100-80gb", "h100": "nvidia-h100-80gb", "h200": "nvidia-h200-141gb"}
GKE |= {"tpu-v4": "tpu-v4-podslice", "tpu-v5e": "tpu-v5-lite-podslice", "tpu-v5p": "tpu-v5p-slice", "tpu-v6e": "tpu-v6e-slice"}


def jobset(row: str, path: str, split: str, values: flags.FlagValues) -> dict:
    """The JobSet of a row; `path` is where the folder of its sweep lies in the pods.

    Its processes find each other by FINGERPRINT_COORDINATOR, FINGERPRINT_PROCESSES and FINGERPRINT_PROCESS.
    """
    out = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    folder = PurePosixPath(path).name
    name = f"{label(folder, LONGEST_NAME - 9)}-{hashlib.sha256(f'{path} {split} {row}'.encode()).hexdigest()[:8]}"
    labels, annotations = {"fingerprint-jax/sweep": label(folder)}, {"fingerprint-jax/row": row}
    out["metadata"] = {"name": name, "labels": labels, "annotations": annotations}
    if values.namespace:
        out["metadata"]["namespace"] = values.namespace
    job = out["spec"]["replicatedJobs"][0]["template"]["spec"]
    processes, limits, selectors = accelerator(values.accelerator, values.processes)
    job |= {"parallelism": processes, "completions": processes}
    job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] = [RUN_AGAIN]
    job["template"]["metadata"]["labels"] = dict(labels)
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    command = ["python", "-m", "launch.local", f"--sweep={path}", f"--split={split}", f"--rows={row}"]
    container |= {"image": values.image, "command": list(map(verbatim, command))}
    limits |= {key: values[flag].value for key, flag in (("cpu", "cpus"), ("memory", "memory")) if values[flag].value}
    if limits:
        container["resources"] = {"limits": limits, "requests": dict(limits)}
    if selectors:
        pod["nodeSelector"] = selectors
        if processes > 1 and TOPOLOGY in selectors:  # all of a row in one slice of TPUs, and no other row's in it
            annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] = "cloud.google.com/gke-nodepool"
    env = [entry.partition("=") for entry in values.env]
    container["env"] += [{"name": key, "value": verbatim(value)} for key, _, value in env]
    if processes > 1:
        index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
        container["env"] += [
            {"name": "FINGERPRINT_COORDINATOR", "value": f"{name}-row-0-0.{name}:{PORT}"},
            {"name": "FINGERPRINT_PROCESSES", "value": str(processes)},
            {"name": "FINGERPRINT_PROCESS", "valueFrom": index},
        ]
    container["volumeMounts"].append({"name": "claim", "mountPath": values.mount})
    pod["volumes"].append({"name": "claim", "persistentVolumeClaim": {"claimName": values.claim}})
    return out


def accelerator(text: str, processes: int | None) -> tuple[int, dict[str, str], dict[str, str]]:
    """Pods of a row, resource limits of each, and selectors of its node on GKE.

    Args:
        text: `h100:16` or `tpu-v5e:16`, the devices of a row, a pod for each host that has them; `gpu:N`, GPUs of each process, of
            whatever kind the cluster has; or empty.
        processes: how many are asked for; None where nobody asks.

    Raises ValueError for another text, and for processes that are not as many as the hosts of those devices.
    """
    name, _, count = text.partition(":")
    if not text:
        return processes or 1, {}, {}
    if name == "gpu":
        if not re.fullmatch(r"[1-9]\d*", count):
            raise ValueError(f"--accelerator={text}: give the GPUs of each process, as in gpu:1")
        return processes or 1, {"nvidia.com/gpu": count}, {}
    names.check("--accelerator", name, ["gpu", *GKE])
    target = targets.parse(text, "--accelerator")
    if processes not in (None, target.hosts):
        raise ValueError(f"--accelerator={text} is {target.hosts} pods, one a host: leave out --processes={processes}")
    each = str(target.count // target.hosts)
    if target.device.platform == "tpu":
        return target.hosts, {"google.com/tpu": each}, {TPU: GKE[name], TOPOLOGY: target.topology}
    return target.hosts, {"nvidia.com/gpu": each}, {GPU: GKE[name]}


def label(text: str, longest: int = 63) -> str:
    """A DNS label that can be read: small letters, digits and `-`, a letter first."""
    return "s" * (not re.match("[a-zA-Z]", text)) + re.sub("[^a-z0-9]+", "-", text.lower())[: longest - 1].rstrip("-")


def verbatim(text: str) -> str:
    """Kubernetes puts variables in place of `$(NAME)` in commands and environments, and reads `$$` as `$`."""
    return text.replace("$", "$$")


class _Text(str):
    """Written in quotes: what reads YAML otherwise may take 1e3, no or 0755 for something else than text."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def dump(documents: Sequence[dict]) -> str:
    """YAML documents, all texts in them in quotes."""
    return yaml.dump_all(map(_quoted, documents), Dumper=_Dumper, sort_keys=False, explicit_start=True, width=float("inf"))


def _quoted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _quoted(each) for key, each in value.items()}
    return list(map(_quoted, value)) if isinstance(value, list) else _Text(value) if isinstance(value, str) else value


def check(values: flags.FlagValues, data_dir: str) -> None:
    """Raises ValueError where a flag, or the place of the data, is nothing that the pods can have."""
    if values.processes is not None and values.processes < 1:
        raise ValueError(f"--processes={values.processes}: at least 1 is needed")
    mount = PurePosixPath(values.mount)
    for what, path in (("--path", values.path), (f"{values.sweep}/sweep.json: data_dir", data_dir)):
        if path and not (mount.is_absolute() and PurePosixPath(path).is_relative_to(mount)) or ".." in PurePosixPath(path).parts:
            raise ValueError(f"{what}={path}: expected a path below --mount={values.mount}, as the pods see it")
    for flag, name in (("namespace", values.namespace), ("claim", values.claim)):
        if name and not re.fullmatch("[a-z0-9]([a-z0-9-.]{0,61}[a-z0-9])?", name):
            raise ValueError(f"--{flag}={name}: expected a name of Kubernetes, small letters, digits and -")
    if wrong := [entry for entry in values.env if not re.match(r"[A-Za-z_]\w*=", entry)]:
        raise ValueError(f"--env={wrong[0]}: expected NAME=VALUE")


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    paths.define("sweep", None, "The directory that launch.sweep wrote, as seen here.", required=True, flag_values=values)
    flags.DEFINE_string("path", None, "The same directory as the pods see it, below --mount.", required=True, flag_values=values)
    flags.DEFINE_string("split", "heldout", "heldout, valid or a packed split.", flag_values=values)
    flags.DEFINE_string("image", None, "An image whose working directory is the checkout.", required=True, flag_values=values)
    flags.DEFINE_string("claim", None, "The persistent volume claim with data and sweeps.", required=True, flag_values=values)
    flags.DEFINE_string("mount", "/mnt", "Where the pods have it.", flag_values=values)
    flags.DEFINE_string("namespace", "", "That of the JobSets.", flag_values=values)
    flags.DEFINE_integer("processes", None, "Processes of a row, a pod each; 1, or as many as hosts.", flag_values=values)
    text = "Devices of a row on GKE, as tpu-v5e:16 or h100:16; gpu:N for each process elsewhere."
    flags.DEFINE_string("accelerator", "", text, flag_values=values)
    flags.DEFINE_string("cpus", "", "Processors of each process.", flag_values=values)
    flags.DEFINE_string("memory", "", "Memory of each process, such as 32Gi.", flag_values=values)
    flags.DEFINE_multi_string("env", [], "NAME=VALUE for the pods.", flag_values=values)
    paths.define("output", "", "The file that is written; standard output where it is empty.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """The YAML of every row that is not finished as far as can be seen here."""
    output = Path(values.sweep)
    data_dir, rows = sweep.read(output)
    check(values, data_dir)
    local.check_folders(output, rows)
    left = [row.name for row in rows if not local.finished(output / row.name, values.split)]
    if not left:
        raise ValueError(f"all {len(rows)} rows of {output} are finished: there is nothing to render")
    text = dump([jobset(name, values.path, values.split, values) for name in left])
    if not values.output:
        print(text, end="")
        return
    files.write_text(values.output, text.removesuffix("\n"))
    print(f"{len(left)} of {len(rows)} rows: kubectl apply -f {values.output}")
