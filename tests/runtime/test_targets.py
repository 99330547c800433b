"""The table of devices, and compiling for those that are not here."""

import math
import platform

import pytest

from fingerprint_jax.runtime import targets

GPUS = [device.name for device in targets.DEVICES if device.gpu]


@pytest.mark.parametrize("device", targets.DEVICES, ids=lambda device: device.name)
def test_every_name_is_a_target(device):
    counts = [count for count, _ in device.slices] or [1, 2, device.per_host, 4 * device.per_host]
    for count in counts:
        target = targets.parse(f"{device.name}:{count}")
        assert (target.device, target.count, str(target)) == (device, count, f"{device.name}:{count}")
        assert math.prod(map(int, target.topology.split("x"))) == count
    assert targets.parse(device.name).count == counts[0]


def test_shapes_and_links():
    assert [targets.parse(name).topology for name in ("tpu-v5e:16", "tpu-v5p:8", "h100:8", "h100:16")] == [
        *("4x4", "2x2x2", "1x1x8", "1x2x8")
    ]
    assert [targets.parse(name).hosts for name in ("tpu-v5e:8", "tpu-v5e:16", "tpu-v5p:8", "h200:16")] == [1, 4, 2, 2]
    assert targets.parse("h100:8").link == 450e9 and targets.parse("h100:16").link == 50e9
    assert targets.parse("tpu-v5e:4").link == targets.parse("tpu-v5e:16").link == 200e9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h10", "target='h10' is unknown: did you mean 'h100'? known: a100, h100"),
        ("h100:none", "give the number of devices after the colon, as in h100:8"),
        ("h100:0", "give the number of devices after the colon"),
        ("h100:12", "more than a host are whole hosts of 8"),
        ("tpu-v5e:5", "there are slices of 1, 4, 8, 16, 32, 64, 128, 256 chips"),
    ],
)
def test_what_is_no_target_is_one_line(text, message):
    with pytest.raises(ValueError) as raised:
        targets.parse(text)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("cpu", None),
    ],
)
def test_the_peak_goes_by_the_kind_of_the_device(kind, flops):
    assert targets.peak(kind) == flops


def test_float32_is_tf32_on_gpus_and_bfloat16_on_tpus():
    for device in targets.DEVICES:
        assert device.float32 == (device.bfloat16 / 2 if device.gpu else device.bfloat16)


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_is_described_to_xla(name):
    device = targets.parse(name).device
    text = targets.gpu_text(device)
    assert text.count("{") == text.count("}") and device.gpu is not None
    assert f"core_count: {device.gpu.cores} " in text and f"device_memory_size: {device.memory} " in text
    # Of the datasheets: what a unit of 128 or 64 lanes can do, two FLOPs each, lies far below the tensor cores.
    assert 2e9 * device.gpu.cores * device.gpu.lanes * device.gpu.clock < device.float32


@pytest.mark.parametrize(("version", "newer"), [((0, 10, 1), " with Python 3.12 or newer"), ((0, 12, 0, 1), "")])
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("tpu-v5e:4", "target tpu-v5e:4: libtpu is missing, which compiles for it: pip install 'fingerprint_jax[target-tpu]'"),
        (
            "h100",
            "target h100:1: jax_plugins.xla_cuda13 is missing, which compiles for it: pip install 'fingerprint_jax[target-cuda]'",
        ),
    ],
)
def test_a_missing_compiler_is_one_line_that_says_how_to_install_it(name, line, version, newer, monkeypatch):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda package: None)
    monkeypatch.setattr(targets.jax, "__version_info__", version)
    with pytest.raises(ValueError) as raised:
        targets.parse(name).mesh()
    assert str(raised.value) == line + newer


NEWER, FLAG = "Python 3.12 or newer, whose jax compiles more", "XLA_FLAGS=--xla_gpu_enable_triton_gemm=false"


@pytest.mark.parametrize(
    ("version", "reason", "helps"),
    [
        ((0, 10, 1), "INTERNAL: Couldn't find output tile sizes satisfying", f"; what may help: {NEWER}, or {FLAG}"),
        ((0, 10, 1), "UNIMPLEMENTED: x", f"; what may help: {NEWER}"),
        ((0, 12, 0, 1), "triton_tiling_propagation.cc:627] Check failed", f"; what may help: {FLAG}"),
        ((0, 12, 0, 1), "UNIMPLEMENTED: x", ""),
    ],
)
def test_what_may_help_where_xla_cannot_compile(version, reason, helps, monkeypatch):
    monkeypatch.setattr(targets.jax, "__version_info__", version)
    versions = f"jax {targets.jax.__version__} on Python {platform.python_version()}"
    assert targets.explained(reason) == f"({reason}; {versions}){helps}"


def test_a_compiler_that_aborts_is_one_line(tmp_path, monkeypatch, capfd):
    line = "F1129 11:42:29.413830    6667 triton_tiling_propagation.cc:627] Check failed: a == b (1024 vs. 64)"
    (tmp_path / "aborting.py").write_text(
        f"import os, sys\nprint({line!r}, 'and a stack', sep=chr(10), file=sys.stderr)\nos.abort()\n"
    )
    (tmp_path / "leaving.py").write_text(
        "import os, sys\nprint(os.environ['FINGERPRINT_COMPILES_FOR'], *sys.argv[1:])\nsys.exit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    target = targets.parse("h100")
    with pytest.raises(
        ValueError, match=r"^target h100:1: XLA's compiler gave up \(triton\S+ Check failed: a == b \(1024 vs. 64\); jax"
    ):
        targets.in_child(target, "aborting", [])
    assert targets.in_child(target, "leaving", ["--x"]) == 3
    assert capfd.readouterr().out == "h100:1 --x\n"


def test_a_child_knows_that_it_is_one(monkeypatch):
    target = targets.parse("h100:8")
    monkeypatch.delenv(targets.CHILD, raising=False)
    assert not targets.compiles_here(target)
    monkeypatch.setenv(targets.CHILD, "h100:8")
    assert targets.compiles_here(target) and not targets.compiles_here(targets.parse("h100"))
