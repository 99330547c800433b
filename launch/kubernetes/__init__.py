"""Renders the unfinished rows of a sweep as JobSets, one a row, for `kubectl apply`.

python -m launch.kubernetes --sweep=sweeps/lr --path=/mnt/sweeps/lr --claim=fingerprint --mount=/mnt --image=IMAGE \
    --accelerator=gpu:1 --output=lr.yaml
"""

import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from absl import flags

from fingerprint_jax.runtime import files, paths
from fingerprint_jax.runtime.preemption import RUN_AGAIN
from launch import local, sweep

TEMPLATE = Path(__file__).with_name("jobset.yaml")
PORT = 8476  # of process 0, where the others meet it
LONGEST_NAME = 40  # of a JobSet; pods add -row-0-<process>-<5 letters>, and a DNS label has at most 63
# GKE's names, and how many numbers a topology has: --accelerator=tpu-v5e:2x4 is the accelerator of the nodes, and a slice of them
TPUS = {"v4": ("tpu-v4-podslice", 3), "v5e": ("tpu-v5-lite-podslice", 2), "v5p": ("tpu-v5p-slice", 3), "v6e": ("tpu-v6e-slice", 2)}
CHIPS = 4  # of a node
ONE_NODE = ("1x1", "2x4")  # slices that one node with fewer or more chips has


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
    job |= {"parallelism": values.processes, "completions": values.processes}
    job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] = [RUN_AGAIN]
    job["template"]["metadata"]["labels"] = dict(labels)
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    command = ["python", "-m", "launch.local", f"--sweep={path}", f"--split={split}", f"--rows={row}"]
    container |= {"image": values.image, "command": list(map(verbatim, command))}
    limits, selectors = accelerator(values.accelerator, values.processes)
    limits |= {key: values[flag].value for key, flag in (("cpu", "cpus"), ("memory", "memory")) if values[flag].value}
    if limits:
        container["resources"] = {"limits": limits, "requests": dict(limits)}
    if selectors:
        pod["nodeSelector"] = selectors
        if values.processes > 1:  # all of a row in one slice of TPUs, and no other row's in it
            annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] = "cloud.google.com/gke-nodepool"
    env = [entry.partition("=") for entry in values.env]
    container["env"] += [{"name": key, "value": verbatim(value)} for key, _, value in env]
    if values.processes > 1:
        index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
        container["env"] += [
            {"name": "FINGERPRINT_COORDINATOR", "value": f"{name}-row-0-0.{name}:{PORT}"},
            {"name": "FINGERPRINT_PROCESSES", "value": str(values.processes)},
            {"name": "FINGERPRINT_PROCESS", "valueFrom": index},
        ]
    container["volumeMounts"].append({"name": "claim", "mountPath": values.mount})
    pod["volumes"].append({"name": "claim", "persistentVolumeClaim": {"claimName": values.claim}})
    return out


def accelerator(text: str, processes: int) -> tuple[dict[str, str], dict[str, str]]:
    """`gpu:N` (of each process) or `tpu-KIND:TOPOLOGY` (of all) -> resource limits of a pod and selectors of its node.

    Raises ValueError for another text, and where the pods do not take whole nodes of TPUs, as GKE wants it.
    """
    if not text:
        return {}, {}
    if match := re.fullmatch(r"gpu:([1-9]\d*)", text):
        return {"nvidia.com/gpu": match[1]}, {}
    match = re.fullmatch(r"tpu-(\w+):([1-9]\d*(?:x[1-9]\d*){1,2})", text)
    if not match or match[1] not in TPUS:
        raise ValueError(f"--accelerator={text}: use gpu:N or tpu-KIND:TOPOLOGY, such as tpu-v5e:2x4; kinds are {', '.join(TPUS)}")
    (name, numbers), sides = TPUS[match[1]], list(map(int, match[2].split("x")))
    if len(sides) != numbers:
        raise ValueError(f"--accelerator={text}: a topology of {match[1]} has {numbers} numbers")
    chips = math.prod(sides)
    if not (processes == 1 and match[2] in ONE_NODE) and chips != CHIPS * processes:
        raise ValueError(f"--accelerator={text}: nodes have {CHIPS} chips, give --processes={max(1, chips // CHIPS)}")
    prefix = "cloud.google.com/gke-tpu-"
    return {"google.com/tpu": str(chips // processes)}, {f"{prefix}accelerator": name, f"{prefix}topology": match[2]}


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
    if values.processes < 1:
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
    flags.DEFINE_integer("processes", 1, "Processes of a row, a pod each.", flag_values=values)
    flags.DEFINE_string("accelerator", "", "gpu:N for each process, or tpu-v5e:2x4 for all of a row.", flag_values=values)
    flags.DEFINE_string("cpus", "", "Processors of each process.", flag_values=values)
    flags.DEFINE_string("memory", "", "Memory of each process, such as 32Gi.", flag_values=values)
    flags.DEFINE_multi_string("env", [], "NAME=VALUE for the pods.", flag_values=values)
    paths.define("output", "", "The file that is written; standard output where it is empty.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """The YAML of every row that is not finished as far as can be seen here."""
    output = Path(values.sweep)
    data_dir, rows = sweep.read(output)
    check(values, data_dir)
    left = [row.name for row in rows if not local.finished(output / row.name, values.split)]
    if not left:
        raise ValueError(f"all {len(rows)} rows of {output} are finished: there is nothing to render")
    text = dump([jobset(name, values.path, values.split, values) for name in left])
    if not values.output:
        print(text, end="")
        return
    files.write_text(values.output, text.removesuffix("\n"))
    print(f"{len(left)} of {len(rows)} rows: kubectl apply -f {values.output}")
