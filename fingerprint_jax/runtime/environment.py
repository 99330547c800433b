"""What every figure stands on: XLA's flags, JAX's settings, a self-test of the devices, and the record of all of them.

The package calls `prepare` when it is imported, and every binary calls `settle`; both come before JAX's backend starts. Nothing
here imports JAX at once: the reader processes of `data/loader.py`, which are to start quickly, import this file too.
"""

import functools
import os
import platform
import re
import subprocess
from collections.abc import Callable, MutableMapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")

# Versions of jaxlib that fuse reductions on CPUs wrongly (jax issues 39103, 39257, 40412), and the flag that keeps them from it.
# The requirements leave these versions out; an environment that has one all the same is mended.
WRONG = re.compile(r"0\.10\.2|0\.11\.\d+")
FLAG, VALUE = "--xla_cpu_experimental_ynn_fusion_type", "-reduce"
# The jax from which on other devices than CPUs are taken. The XLA of 0.10 aborts for some convolutions on GPUs (openxla/xla issue
# 47381); of TPUs nothing is known to fail, but 0.12 is what is looked at.
FOR_DEVICES = (0, 12)
# Takes two hints of its own compiler for features that the processor lacks, and says so, a page long, of each program in the cache.
LOUD, QUIET = "0.10.1", {"TF_CPP_MIN_LOG_LEVEL": "3"}  # XLA's errors are raised, too

# What decides which numbers a seed draws and of what type arrays are. The environment of a user cannot change these.
FIXED = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_enable_custom_prng": False,
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_legacy_prng_key": "allow",
}
# What decides how sums are rounded. A user may set these, and a run records them.
ROUNDING = ("jax_default_matmul_precision", "jax_disable_jit", "jax_disable_most_optimizations", "jax_allow_f16_reductions")
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")

TOLERANCE = 1e-3  # of the self-test, relative to the largest value: more than TF32 is off, less than the wrong sums are (0.036)
# Of a checkout, what figures depend on.
PARTS = ("fingerprint_jax", "configs", "launch", "benchmarks", "requirements.txt", "pyproject.toml")

ROWS = 32769  # the wrong sums begin at this many rows of 3 float32


def prepare(environ: MutableMapping[str, str] = os.environ, jaxlib: str = "") -> None:
    """Adds to XLA_FLAGS what keeps a jaxlib of `WRONG` from computing wrong sums, and quiets one that is `LOUD`.

    What the user has set stays. Where XLA_FLAGS names the same flag, or is the name of a file, nothing is added to it, and
    `self_test` decides.
    """
    jaxlib = jaxlib or version("jaxlib")
    if jaxlib == LOUD:
        for name, value in QUIET.items():
            environ.setdefault(name, value)
    if not WRONG.fullmatch(jaxlib):
        return
    flags = environ.get("XLA_FLAGS", "").strip()
    if FLAG not in flags and (not flags or flags.startswith("-")):
        environ["XLA_FLAGS"] = f"{flags} {FLAG}={VALUE}".strip()


def settle() -> None:
    """Sets what a seed draws from (`FIXED`), whatever the environment says of it."""
    import jax

    for name, value in FIXED.items():
        if name in jax.config.values:
            jax.config.update(name, value)


def check_version(backend: str) -> None:
    """Raises ValueError where this jax is too old for a backend, as `jax.default_backend` names it."""
    import jax

    if backend != "cpu" and jax.__version_info__ < FOR_DEVICES:
        wanted = f"install jax {'.'.join(map(str, FOR_DEVICES))}, which needs Python 3.12 or newer"
        raise ValueError(
            f"jax {jax.__version__} on Python {platform.python_version()} is too old for a {backend.upper()}: {wanted},"
            " or compute on the processor by JAX_PLATFORMS=cpu"
        )


@functools.cache
def self_test() -> str:
    """Computes on every device of this process what is known to go wrong: 'passed', once a process; it takes about a second.

    Two sums of public bug reports, and a convolution with its gradients, against numpy in float64.

    Raises ValueError that names the versions, the device and what is wrong.
    """
    import jax

    from fingerprint_jax.runtime import sharding

    place = sharding.replicated(sharding.own(sharding.make_mesh()))
    for what, function, arguments, expected in _cases():
        with jax.default_matmul_precision("highest"):
            found = jax.jit(function, out_shardings=place)(*(sharding.put(x, place) for x in arguments))
        for got, right in zip(found, expected, strict=True):
            for shard in got.addressable_shards:
                error = float(abs(jax.device_get(shard.data) - right).max() / abs(right).max())
                if not error <= TOLERANCE:
                    raise ValueError(
                        f"self-test: jaxlib {version('jaxlib')} computes {what} wrongly on {shard.device} (off by {error:.2g} of"
                        f" the largest value), so that no figure can be trusted: {_remedy()}"
                    )
    return "passed"


def _remedy() -> str:
    if WRONG.fullmatch(version("jaxlib")) and FLAG in os.environ.get("XLA_FLAGS", ""):
        return f"take {FLAG} out of XLA_FLAGS, or install the versions of requirements.txt"
    return "install the versions of requirements.txt, or try another device"


def _cases() -> list[tuple]:
    """(what, function of arrays -> tuple of arrays, its arguments float32, the right values float64)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def exact(subscripts: str, *arrays: np.ndarray) -> np.ndarray:
        return np.einsum(subscripts, *(x.astype(np.float64) for x in arrays))

    def norms(x: jax.Array, m: jax.Array) -> tuple[jax.Array, ...]:
        return (jax.vmap(lambda row: jnp.sum((m @ row) ** 2))(x),)

    def products(a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
        return (jnp.sum(a * b, axis=3),)

    def convolution(x: jax.Array, kernel: jax.Array, weight: jax.Array) -> tuple[jax.Array, ...]:
        def value(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
            out = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return (out * weight).sum(), out

        (_, out), gradients = jax.value_and_grad(value, (0, 1), has_aux=True)(x, kernel)
        return out, *gradients

    # jax issue 39103; this case is first, since the next ends the process where it goes wrong (issues 39257, 40412).
    x, m = drawn(ROWS, 3), drawn(3, 3)
    cases: list[tuple[str, Callable[..., tuple], tuple, list]] = []
    cases.append(("sums of squares", norms, (x, m), [(exact("ij,kj->ik", x, m) ** 2).sum(axis=1)]))
    a, b = drawn(3, 1, 2, 2, 8, 8, 8), drawn(3, 1, 2, 2, 8, 8, 8)
    cases.append(("sums of products", products, (a, b), [(a.astype(np.float64) * b).sum(axis=3)]))

    image, kernel, weight = drawn(4, 18, 18, 8), drawn(3, 3, 8, 16), drawn(4, 16, 16, 16)
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(1, 2))  # [n,y,x,c,h,w]
    to_image = np.zeros(image.shape)
    for h in range(3):
        for w in range(3):
            to_image[:, h : h + 16, w : w + 16] += exact("nyxo,co->nyxc", weight, kernel[h, w])
    right = [exact("nyxchw,hwco->nyxo", windows, kernel), to_image, exact("nyxchw,nyxo->hwco", windows, weight)]
    cases.append(("a convolution or its gradients", convolution, (image, kernel, weight), right))
    return cases


def libraries() -> dict[str, str]:
    """{library: version}."""
    return {name: version(name) for name in LIBRARIES}


def settings() -> dict[str, Any]:
    """What of JAX's settings and XLA's variables decides how sums are rounded; variables that are not set are left out."""
    import jax

    found = {name: jax.config.values[name] for name in ROUNDING if name in jax.config.values}
    return found | {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}


@functools.cache
def code() -> dict[str, Any]:
    """Version of this package, Python's, and of a git checkout the commit and whether its files differ from it; else None."""
    from fingerprint_jax import __version__

    found: dict[str, Any] = {"fingerprint_jax": __version__, "commit": None, "changed": None, "python": platform.python_version()}
    root = Path(__file__).resolve().parents[2]
    # A package that is installed below somebody else's checkout is not of that.
    if _git(root, "ls-files", "--error-unmatch", str(Path(__file__).resolve())) and (commit := _git(root, "rev-parse", "HEAD")):
        changes = _git(root, "status", "--porcelain", "--", *(name for name in PARTS if (root / name).exists()))
        found |= {"commit": commit.strip(), "changed": None if changes is None else bool(changes)}
    return found


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails, or is not there."""
    try:
        return subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},  # it only looks
        ).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def devices() -> str:
    """Devices of all processes, such as `cpu x 2 (AMD EPYC 7B13)` or `gpu x 8 (NVIDIA H100 80GB HBM3)`."""
    import jax

    kinds = sorted({device.device_kind for device in jax.devices()})
    if jax.default_backend() == "cpu":
        kinds = [_processor()]
    return f"{jax.default_backend()} x {jax.device_count()} ({', '.join(kinds)})"


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def record() -> dict[str, Any]:
    """All of it, JSON types, after `self_test` has passed: what results.json and audit.json carry as `environment`."""
    return code() | {"devices": devices(), "settings": settings(), "self_test": self_test()}
