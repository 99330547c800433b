"""Devices that a run is meant for: what their makers say of them, and how XLA compiles for one that is not there.

One table for all: shares of a peak, dry runs of a target, templates of a launch.
"""

import ctypes
import dataclasses
import importlib.util
import math
import os
import platform as machine
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from fingerprint_jax.runtime import environment, names, sharding

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA asks of a GPU beside the figures of `Device`; of NVIDIA's white papers and CUDA's table of compute capabilities."""

    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    lanes: int  # float32 units of each
    shared: int  # bytes of shared memory of each
    cache: int  # bytes of L2
    clock: float  # GHz, boost
    description: str


@dataclasses.dataclass(frozen=True)
class Device:
    """A kind of device; the figures are of the data sheet and of one device.

    Attributes:
        name: as `--target` takes it.
        platform: of JAX, `cuda` or `tpu`.
        kinds: what `device_kind` begins with; the longest that fits says which device it is.
        per_host: devices of the largest host.
        bfloat16: FLOP/s of dense products.
        float32: FLOP/s of float32 products as JAX multiplies them by default: TF32 on a GPU, a pass in bfloat16 on a TPU.
        memory: bytes.
        bandwidth: bytes a second of its memory.
        link: bytes a second that it can send to others of its host, of a TPU's to its whole slice: one direction, all links.
        network: bytes a second that it can send to other hosts.
        slices: {devices: topology} of a TPU; empty for GPUs, which may be any number.
        gpu: of a GPU alone.
    """

    name: str
    platform: str
    kinds: tuple[str, ...]
    per_host: int
    bfloat16: float
    float32: float
    memory: int
    bandwidth: float
    link: float
    network: float
    slices: tuple[tuple[int, str], ...] = ()
    gpu: Gpu | None = None


# Shapes of the pages "TPU v4", "v5e", "v5p" and "v6e" of Cloud TPU's documentation, the smallest of each count.
_FLAT = ((1, "1x1"), (4, "2x2"), (8, "2x4"), (16, "4x4"), (32, "4x8"), (64, "8x8"), (128, "8x16"), (256, "16x16"))
_CUBES = ((4, "2x2x1"), (8, "2x2x2"), (16, "2x2x4"), (32, "2x4x4"), (64, "4x4x4"), (128, "4x4x8"), (256, "4x8x8"), (512, "8x8x8"))

# Products are half of what NVIDIA says "with sparsity"; NVLink is half of its total of both directions. Between hosts: the network
# cards of NVIDIA's DGX of that GPU, one a GPU, of 200 Gb/s (DGX A100) and 400 Gb/s (DGX H100, DGX H200).
DEVICES = (
    # "NVIDIA A100 Tensor Core GPU" data sheet, A100 80GB SXM; white paper "NVIDIA A100 Tensor Core GPU Architecture".
    Device(
        *("a100", "cuda", ("NVIDIA A100",), 8, 312e12, 156e12, 80 * 10**9, 2.039e12, 300e9, 25e9),
        gpu=Gpu((8, 0), 108, 64, 167936, 40 * 2**20, 1.41, "NVIDIA A100-SXM4-80GB"),
    ),
    # "NVIDIA H100 Tensor Core GPU" data sheet, H100 SXM; white paper "NVIDIA H100 Tensor Core GPU Architecture".
    Device(
        *("h100", "cuda", ("NVIDIA H100",), 8, 989e12, 494.5e12, 80 * 10**9, 3.35e12, 450e9, 50e9),
        gpu=Gpu((9, 0), 132, 128, 233472, 50 * 2**20, 1.98, "NVIDIA H100 80GB HBM3"),
    ),
    # The same, H100 PCIe; its link is PCIe 5.0 x16, as the NVLink bridge joins two only.
    Device(
        *("h100-pcie", "cuda", ("NVIDIA H100 PCIe",), 8, 756e12, 378e12, 80 * 10**9, 2.0e12, 64e9, 50e9),
        gpu=Gpu((9, 0), 114, 128, 233472, 50 * 2**20, 1.755, "NVIDIA H100 PCIe"),
    ),
    # "NVIDIA H200 Tensor Core GPU" data sheet, H200 SXM; the processor is that of the H100 SXM.
    Device(
        *("h200", "cuda", ("NVIDIA H200",), 8, 989e12, 494.5e12, 141 * 10**9, 4.8e12, 450e9, 50e9),
        gpu=Gpu((9, 0), 132, 128, 233472, 50 * 2**20, 1.98, "NVIDIA H200"),
    ),
    # "TPU v4" of Cloud TPU's documentation: 275 TFLOPs, 32 GiB, 1,200 GB/s; links as in Jouppi et al. 2023 (arXiv 2304.01433):
    # 6 of 50 GB/s.
    Device("tpu-v4", "tpu", ("TPU v4",), 4, 275e12, 275e12, 32 * GIB, 1.2e12, 300e9, 300e9, _CUBES),
    # "TPU v5e": 197 TFLOPs, 16 GB, 819 GB/s, 1,600 Gb/s between chips (400 GB/s in both directions).
    Device("tpu-v5e", "tpu", ("TPU v5 lite", "TPU v5e"), 8, 197e12, 197e12, 16 * GIB, 819e9, 200e9, 200e9, _FLAT),
    # "TPU v5p": 459 TFLOPs, 95 GiB, 2,765 GB/s, 1,200 GB/s between chips in both directions; JAX calls it "TPU v5".
    Device("tpu-v5p", "tpu", ("TPU v5p", "TPU v5"), 4, 459e12, 459e12, 95 * GIB, 2.765e12, 600e9, 600e9, _CUBES),
    # "TPU v6e": 918 TFLOPs, 32 GB, 1,600 GB/s, 3,200 Gb/s between chips.
    Device("tpu-v6e", "tpu", ("TPU v6 lite", "TPU v6e"), 8, 918e12, 918e12, 32 * GIB, 1.6e12, 400e9, 400e9, _FLAT),
)


def of_kind(kind: str) -> Device | None:
    """The device of a `device_kind` of JAX; None for one that is not in the table."""
    fitting = [(len(begin), device) for device in DEVICES for begin in device.kinds if kind.startswith(begin)]
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else None


def peak(kind: str, dtype: str = "bfloat16") -> float | None:
    """FLOP/s of dense products of a dtype by the `device_kind`, float32 as JAX multiplies it; None where it is not known."""
    device = of_kind(kind)
    return device and (device.bfloat16 if dtype == "bfloat16" else device.float32)


@dataclasses.dataclass(frozen=True)
class Target:
    """So many devices of a kind, as `--target=h100:8` names them."""

    device: Device
    count: int

    def __str__(self) -> str:
        return f"{self.device.name}:{self.count}"

    @property
    def hosts(self) -> int:
        """How many hosts hold them: one where it can; those of a larger slice of TPUs have 4 chips each."""
        return math.ceil(self.count / (4 if self.device.slices and self.count > self.device.per_host else self.device.per_host))

    @property
    def topology(self) -> str:
        """As XLA names it: sides of a TPU's slice; slices x hosts x devices of GPUs."""
        if self.device.slices:
            return dict(self.device.slices)[self.count]
        return f"1x{self.hosts}x{self.count // self.hosts}"

    @property
    def link(self) -> float:
        """Bytes a second that a device can send to the others; those of several hosts with GPUs go through their network."""
        return self.device.link if self.hosts == 1 else self.device.network

    def check(self) -> None:
        """Raises ValueError where the package that compiles for it is missing, with how to install it."""
        package = "libtpu" if self.device.platform == "tpu" else "jax_plugins.xla_cuda13"
        if not _installed(package):
            extra = "target-tpu" if self.device.platform == "tpu" else "target-cuda"
            newer = " with Python 3.12 or newer" if jax.__version_info__ < environment.FOR_DEVICES else ""
            install = f"pip install 'fingerprint_jax[{extra}]'{newer}"
            raise ValueError(f"target {self}: {package} is missing, which compiles for it: {install}")

    def mesh(self) -> Mesh:
        """A mesh over its devices, which need not be there: programs can be compiled for it, and not run.

        Raises ValueError as `check`.
        """
        self.check()
        if self.device.platform == "tpu":
            name = f"{self.device.name.removeprefix('tpu-')}:{self.topology}"
            options: dict[str, Any] = {}
            if self.hosts == 1:
                options["chips_per_host_bounds"] = (*map(int, self.topology.split("x")), 1)[:3]
            if self.device.slices is _CUBES:
                options["chip_config_name"] = "megacore"  # the two cores of a chip are one device, as they are where it runs
            found = topologies.get_topology_desc(name, platform="tpu", **options)
        else:
            config = gpu_text(self.device)
            found = topologies.get_topology_desc(str(self), platform="cuda", target_config=config, topology=self.topology)
        return sharding.make_mesh(found.devices)


def parse(text: str, field: str = "target") -> Target:
    """`NAME` or `NAME:COUNT` as a target, one device where no count is given; raises ValueError with what is known.

    `field` is what the error calls it by, a flag.
    """
    name, _, count = text.partition(":")
    by_name = {device.name: device for device in DEVICES}
    names.check(field, name, by_name)
    device = by_name[name]
    smallest = device.slices[0][0] if device.slices else 1
    if not re.fullmatch(r"[1-9]\d{0,4}", count or str(smallest)):
        raise ValueError(f"{field}={text!r}: give the number of devices after the colon, as in {name}:8")
    number = int(count or smallest)
    if device.slices and number not in (sizes := dict(device.slices)):
        raise ValueError(f"{field}={text!r}: there are slices of {', '.join(map(str, sizes))} chips")
    if not device.slices and number > device.per_host and number % device.per_host:
        raise ValueError(f"{field}={text!r}: more than a host are whole hosts of {device.per_host}")
    return Target(device, number)


def gpu_text(device: Device) -> str:
    """XLA's description of a GPU, a text proto (`GpuTargetConfigProto`)."""
    gpu = device.gpu
    if gpu is None:
        raise ValueError(f"{device.name} is no GPU")
    return (
        f"gpu_device_info {{ cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}"
        " threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152"
        f" shared_memory_per_core: {gpu.shared} threads_per_core_limit: 2048 core_count: {gpu.cores} fpus_per_core: {gpu.lanes}"
        " block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535"
        f" memory_bandwidth: {device.bandwidth:.0f} l2_cache_size: {gpu.cache} clock_rate_ghz: {gpu.clock}"
        f" device_memory_size: {device.memory} shared_memory_per_block_optin: {gpu.shared - 1024}"
        " registers_per_core_limit: 65536 registers_per_block_limit: 65536 }"
        ' platform_name: "CUDA" dnn_version_info { major: 9 minor: 14 patch: 0 } runtime_version { major: 13 minor: 0 }'
        f' device_description_str: "{gpu.description}"'
    )


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # not even what it lies in
        return False


CHILD = "FINGERPRINT_COMPILES_FOR"  # set in the process that compiles


def compiles_here(target: Target) -> bool:
    """Whether this is the process that `in_child` started for a target."""
    return os.environ.get(CHILD) == str(target)


def child_environment(target: Target) -> dict[str, str]:
    """That of a process which compiles for a target: it sees the CPU alone, keeps no programs, and asks nobody for devices."""
    here = {CHILD: str(target), "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    here |= {"TPU_SKIP_MDS_QUERY": "1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
    # Else libtpu complains that nobody says which machine this is, and that another process has loaded it.
    here |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_STDERR_LOG_LEVEL": "3"}
    here["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    return os.environ | here


def in_child(target: Target, module: str, arguments: Sequence[str]) -> int:
    """Runs `python -m module arguments` where XLA can compile for a target and may abort; returns its exit status.

    Its environment is `child_environment`. What it says on stdout comes as it is said, the rest at its end.

    Raises ValueError, with what the compiler said last, where a signal ended it.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "stderr"
        with said.open("wb") as file:
            command = [sys.executable, "-m", module, *arguments]
            done = subprocess.run(command, env=child_environment(target), stderr=file, preexec_fn=_end_with_parent)
        text = said.read_text(errors="replace")
    if done.returncode < 0:
        raise ValueError(f"target {target}: {aborted(text, done.returncode)}")
    sys.stderr.write(text)
    return done.returncode


def _end_with_parent() -> None:
    # A compiler takes minutes, and one that nobody waits for is to end. Linux only (PR_SET_PDEATHSIG of prctl).
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def aborted(text: str, status: int) -> str:
    """One line of why a compiler ended its process, from what it wrote."""
    reason = next((line for line in text.splitlines() if "Check failed" in line), f"it ended by signal {-status}")
    reason = re.sub(r"^[FEWI]\d{4} \S+\s+\d+ ", "", reason.strip())
    return f"XLA's compiler gave up {explained(reason)}"


def explained(reason: str) -> str:
    """A reason of XLA's compiler in brackets, with the versions that gave it, and what may help."""
    helps = ["Python 3.12 or newer, whose jax compiles more"] if jax.__version_info__ < environment.FOR_DEVICES else []
    if re.search("triton|tile size", reason):  # of products, for which it finds no tiles where no device can try them
        helps.append("XLA_FLAGS=--xla_gpu_enable_triton_gemm=false")
    versions = f"jax {jax.__version__} on Python {machine.python_version()}"
    return f"({reason}; {versions}){'; what may help: ' * bool(helps)}{', or '.join(helps)}"
