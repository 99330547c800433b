"""JobSets by their structure: names, the address of process 0, resources, restarts, and that every text is read as text."""

import re

import pytest
import yaml

from fingerprint_jax.runtime import targets
from fingerprint_jax.runtime.preemption import RUN_AGAIN
from launch import collect, kubernetes, local, sweep
from tests.conftest import finish
from tests.launch.test_slurm import ODD, write_seeds
from tests.test_evaluate import run_binary

LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1035, as Kubernetes wants a service's name
GIVEN = ("--image=registry.example/fingerprint:1", "--claim=fingerprint", "--mount=/mnt")


@pytest.fixture
def output(tmp_path):
    write_seeds(tmp_path / "s", data_dir="/mnt/data")
    return tmp_path / "s"


def render(output, *flags, path="/mnt/sweeps/s"):
    """The documents, and the text that they were read from."""
    file = output.parent / "out.yaml"
    run_binary(kubernetes, f"--sweep={output}", f"--path={path}", f"--output={file}", *GIVEN, *flags)
    return list(yaml.safe_load_all(file.read_text())), file.read_text()


def parts(document):
    """Job, pod and container of a JobSet."""
    (replicated,) = document["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    return job, job["template"]["spec"], container


def expanded(text, variables):
    """What Kubernetes makes of an argument: `$$` is `$`, `$(NAME)` a variable that is known, the rest stays."""
    return re.sub(r"\$\$|\$\((\w+)\)", lambda m: "$" if m[0] == "$$" else variables.get(m[1], m[0]), text)


def test_one_jobset_a_row_that_is_not_finished(output, capsys):
    names = [row.name for row in sweep.read(output)[1]]
    finish(output / names[1])
    documents, _ = render(output)
    assert "2 of 3 rows: kubectl apply -f" in capsys.readouterr().out
    assert [parts(each)[2]["command"] for each in documents] == [
        ["python", "-m", "launch.local", "--sweep=/mnt/sweeps/s", "--split=heldout", f"--rows={name}"]
        for name in (names[0], names[2])
    ]
    for document, name in zip(documents, (names[0], names[2]), strict=True):
        assert document["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and document["kind"] == "JobSet"
        job, pod, container = parts(document)
        command = ["python", "-m", "launch.local", "--sweep=/mnt/sweeps/s", "--split=heldout", f"--rows={name}"]
        assert container["command"] == command
        assert job["parallelism"] == job["completions"] == 1 and job["completionMode"] == "Indexed"
        assert document["metadata"]["annotations"] == {"fingerprint-jax/row": name}
        assert document["metadata"]["labels"] == job["template"]["metadata"]["labels"] == {"fingerprint-jax/sweep": "s"}
        assert container["image"] == "registry.example/fingerprint:1" and container["env"] == []
        assert "resources" not in container and "nodeSelector" not in pod and "namespace" not in document["metadata"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} == {"memory": "/dev/shm", "claim": "/mnt"}
        assert volumes["claim"]["persistentVolumeClaim"] == {"claimName": "fingerprint"} and len(volumes) == 2
    finish(output / names[0])
    finish(output / names[2])
    with pytest.raises(ValueError, match="all 3 rows of .* are finished"):
        render(output)
    finish(output / names[1], seed=7)
    with pytest.raises(ValueError, match=f"row {names[1]}: config.seed is 7 in its folder, 1 in the sweep"):
        render(output)


def test_a_row_told_to_save_or_that_lost_its_node_is_started_again_without_being_counted(output):
    job, pod, container = parts(render(output)[0][0])
    stopped, disrupted = job["podFailurePolicy"]["rules"]
    assert stopped["action"] == disrupted["action"] == "Ignore"
    assert stopped["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [RUN_AGAIN]}
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy needs it
    assert job["backoffLimit"] == 0 and render(output)[0][0]["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_processes_find_process_0(output):
    for document in render(output, "--processes=4", "--namespace=research")[0]:
        name, (job, _, container) = document["metadata"]["name"], parts(document)
        assert document["metadata"]["namespace"] == "research"
        assert job["parallelism"] == job["completions"] == 4 and job["completionMode"] == "Indexed"
        env = {entry["name"]: entry for entry in container["env"]}
        host, _, port = env["FINGERPRINT_COORDINATOR"]["value"].partition(":")
        (replicated,) = document["spec"]["replicatedJobs"]
        # <jobset>-<replicated job>-<job index>-<pod index>.<subdomain>, and the subdomain is the JobSet's name unless given.
        assert host == f"{name}-{replicated['name']}-0-0.{name}" and 0 < int(port) < 65536 and replicated["replicas"] == 1
        assert document["spec"]["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
        assert env["FINGERPRINT_PROCESSES"]["value"] == "4"
        path = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        assert env["FINGERPRINT_PROCESS"] == {"name": "FINGERPRINT_PROCESS", "valueFrom": {"fieldRef": {"fieldPath": path}}}


@pytest.mark.parametrize("folder", ["s", "2026_Ablation of Everything.v2" * 4, "---", "été", "S" * 200, "a" * 30 + "-" * 40])
def test_names_are_labels_and_differ_between_rows_splits_and_sweeps(output, folder):
    documents = render(output, path=f"/mnt/sweeps/{folder}")[0] + render(output, "--split=valid", path=f"/mnt/sweeps/{folder}")[0]
    documents += render(output, path=f"/mnt/others/{folder}")[0]
    names = [document["metadata"]["name"] for document in documents]
    assert len(set(names)) == len(names) == 9
    for name in names:
        assert LABEL.fullmatch(name) and LABEL.fullmatch(f"{name}-row-0-99999-abcde")
    assert all(LABEL.fullmatch(document["metadata"]["labels"]["fingerprint-jax/sweep"]) for document in documents)


# Labels and values of GKE's documentation; nodes of TPUs with 1, 4 or 8 chips, of GPUs with 8.
TPU, TOPOLOGY = "cloud.google.com/gke-tpu-accelerator", "cloud.google.com/gke-tpu-topology"
GPU = "cloud.google.com/gke-accelerator"


@pytest.mark.parametrize(
    ("accelerator", "pods", "limits", "selectors"),
    [
        ("tpu-v5e:16", 4, {"google.com/tpu": "4"}, {TPU: "tpu-v5-lite-podslice", TOPOLOGY: "4x4"}),
        ("tpu-v5e:8", 1, {"google.com/tpu": "8"}, {TPU: "tpu-v5-lite-podslice", TOPOLOGY: "2x4"}),
        ("tpu-v6e", 1, {"google.com/tpu": "1"}, {TPU: "tpu-v6e-slice", TOPOLOGY: "1x1"}),
        ("tpu-v4:4", 1, {"google.com/tpu": "4"}, {TPU: "tpu-v4-podslice", TOPOLOGY: "2x2x1"}),
        ("tpu-v5p:8", 2, {"google.com/tpu": "4"}, {TPU: "tpu-v5p-slice", TOPOLOGY: "2x2x2"}),
        ("h100:16", 2, {"nvidia.com/gpu": "8"}, {GPU: "nvidia-h100-80gb"}),
        ("h200:4", 1, {"nvidia.com/gpu": "4"}, {GPU: "nvidia-h200-141gb"}),
        ("a100:8", 1, {"nvidia.com/gpu": "8"}, {GPU: "nvidia-a100-80gb"}),
        ("gpu:2", 1, {"nvidia.com/gpu": "2"}, None),
        ("", 1, {}, None),
    ],
)
def test_accelerators(output, accelerator, pods, limits, selectors):
    document = render(output, f"--accelerator={accelerator}", "--cpus=8", "--memory=32Gi")[0][0]
    job, pod, container = parts(document)
    expected = limits | {"cpu": "8", "memory": "32Gi"}
    assert container["resources"] == {"limits": expected, "requests": expected}
    assert job["parallelism"] == job["completions"] == pods and pod.get("nodeSelector") == selectors
    assert {"name": "FINGERPRINT_PROCESSES", "value": str(pods)} in container["env"] or pods == 1
    # Pods of one slice of TPUs share it with no other row; nodes of GPUs are of whoever comes.
    exclusive = document["metadata"]["annotations"].get("alpha.jobset.sigs.k8s.io/exclusive-topology")
    assert exclusive == ("cloud.google.com/gke-nodepool" if pods > 1 and "google.com/tpu" in limits else None)


def test_gpus_of_any_kind_are_those_of_each_process(output):
    job, pod, container = parts(render(output, "--accelerator=gpu:2", "--processes=3")[0][0])
    assert job["completions"] == 3 and container["resources"]["limits"] == {"nvidia.com/gpu": "2"} and "nodeSelector" not in pod


def test_every_device_of_the_table_that_gke_has_is_known():
    assert {device.name for device in targets.DEVICES} - kubernetes.GKE.keys() == {"h100-pcie"}


def test_whatever_stands_in_a_text_arrives_as_it_is(output):
    values = {"A": "1e3", "B": "no", "C": "$(HOME) $$ $x", "D": ODD, "E": "a: b # c", "F": "=x", "G": "\x85 \u2028 😀"}
    documents, text = render(output, *(f"--env={name}={value}" for name, value in values.items()), path=f"/mnt/{ODD}")
    for document in documents:
        _, _, container = parts(document)
        found = {entry["name"]: expanded(entry["value"], {"HOME": "/root", "A": "1e3"}) for entry in container["env"]}
        assert found == values
        assert expanded(container["command"][3], {"HOME": "/root"}) == f"--sweep=/mnt/{ODD}"
    # Readers differ in what they take for text: all of it stands in quotes, but for keys, numbers and true or false.
    for scalar in yaml.scan(text):
        if isinstance(scalar, yaml.ScalarToken) and scalar.plain:
            assert re.fullmatch(r"[A-Za-z][A-Za-z0-9./-]*|\d+", scalar.value), scalar.value
    assert not re.search(r'(?m)^[ -]*[\w./-]+: (?!"|\d+$|true$|\[\]$|\{)\S', text)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--processes=0", "--processes=0: at least 1"),
        ("--path=sweeps/s", "--path=sweeps/s: expected a path below --mount=/mnt"),
        ("--path=/mnt/../s", "--path=/mnt/../s: expected a path below --mount=/mnt"),
        ("--mount=/data", "expected a path below --mount=/data"),
        ("--namespace=A b", "--namespace=A b: expected a name of Kubernetes"),
        ("--claim=a/b", "--claim=a/b: expected a name of Kubernetes"),
        ("--accelerator=gpu", "--accelerator=gpu: give the GPUs of each process, as in gpu:1"),
        (
            "--accelerator=h10:8",
            "--accelerator='h10' is unknown: did you mean 'h100'? known: gpu, a100, h100, h200, tpu-v4, tpu-v5e,",
        ),
        ("--accelerator=h100-pcie:8", "--accelerator='h100-pcie' is unknown: did you mean 'h100'?"),
        ("--accelerator=h100:12", "--accelerator='h100:12': more than a host are whole hosts of 8"),
        ("--accelerator=tpu-v5e:2x4", "--accelerator='tpu-v5e:2x4': give the number of devices after the colon, as in tpu-v5e:8"),
        ("--accelerator=tpu-v4:12", "--accelerator='tpu-v4:12': there are slices of 4, 8, 16, 32, 64, 128, 256, 512 chips"),
        ("--env=1=2", "--env=1=2: expected NAME=VALUE"),
    ],
)
def test_bad_flags_are_refused(output, flag, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        render(output, flag)


def test_processes_are_as_many_as_hosts(output):
    with pytest.raises(ValueError, match="^--accelerator=tpu-v5e:16 is 4 pods, one a host: leave out --processes=2$"):
        render(output, "--accelerator=tpu-v5e:16", "--processes=2")
    assert parts(render(output, "--accelerator=tpu-v5e:16", "--processes=4")[0][0])[0]["completions"] == 4


def test_data_lie_on_the_claim(tmp_path):
    write_seeds(tmp_path / "other", data_dir="/home/me/data")
    with pytest.raises(ValueError, match=r"other/sweep.json: data_dir=/home/me/data: expected a path below --mount=/mnt"):
        render(tmp_path / "other")


def test_without_output_the_text_is_printed(output, capsys):
    run_binary(kubernetes, f"--sweep={output}", "--path=/mnt/s", *GIVEN)
    assert len(list(yaml.safe_load_all(capsys.readouterr().out))) == 3


def test_what_pods_leave_is_what_collect_reads(output, monkeypatch):
    """The command of a pod, with a stand-in for the binaries: process 0 tells of a failure, the others have their own log."""
    row, *_ = (row.name for row in sweep.read(output)[1])
    for process in ("1", "0"):
        monkeypatch.setenv("FINGERPRINT_PROCESS", process)
        monkeypatch.setattr(local.sys, "executable", "/bin/false")
        assert local.run_sweep(output, "heldout", 1, [row]) == {row: "failed"}
        assert (output / row / "failed.json").exists() == (process == "0")
    assert {path.name for path in (output / row).glob("log*")} == {"log.txt", "log-1.txt"}
    (line,) = collect.collect(output, "heldout", "accuracy")
    assert line["note"] == "seed 0 failed: no output; seed 1 not finished; seed 2 not finished"
