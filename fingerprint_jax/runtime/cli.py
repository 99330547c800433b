"""What the binaries share: flags of their own, one line for what the user can mend."""

import contextlib
import ctypes
import errno
import gc
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Generator
from pathlib import Path

import jax
from absl import app, flags
from ml_collections.config_dict import config_dict

import fingerprint_jax
from fingerprint_jax.runtime import distributed, environment, files, names
from fingerprint_jax.runtime.preemption import RUN_AGAIN, Preempted

log = logging.getLogger(__name__)
QUOTES = "\"'"


def compiled_dir() -> Path | None:
    """Where compiled programs are kept for the next process: `~/.cache/fingerprint_jax/<host>`, which only its owner may enter.

    Whoever can write there can run code here. Each host has its own, as XLA compiles for the processor that it runs on. None where
    there can be no such folder, or where JAX_COMPILATION_CACHE_DIR names another, or is empty for none.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        path = Path(base) / "fingerprint_jax" / (platform.node() or "host")
        for folder in (path.parent, path):
            files.make_private(folder)
    except ValueError as error:
        log.warning("compiled programs are not kept: %s", error)
        return None
    except (OSError, RuntimeError):  # read-only, or a user without a home
        return None
    return path


def keep_freed_memory() -> None:
    """glibc keeps freed memory for the next step, where it would give large pieces back to Linux; for before JAX's backend starts.

    On CPUs XLA takes the buffers of a step from malloc, and a page that Linux has to find and clear anew costs more than what is
    computed in it: large steps of the Siamese network take 1.4 to 2.1 times as long without this (docs/performance.md). The
    process holds on to the most that it ever used. Nothing is done where the environment has a setting of malloc's, or without
    glibc.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        # Of malloc.h: M_ARENA_MAX, that the threads of XLA share one heap; M_MMAP_MAX; M_TRIM_THRESHOLD in bytes.
        for parameter, value in ((-8, 1), (-4, 0), (-1, 2**31 - 1)):
            libc.mallopt(parameter, value)


def collect_rarely() -> None:
    """Python looks for circles of dead objects 100 times as rarely: while JAX traces a network there are few, among many objects.

    What is imported is never looked at again.
    """
    gc.freeze()
    gc.set_threshold(100 * 700, 10, 10)


def run(
    name: str, define_flags: Callable[[flags.FlagValues], None], main: Callable[[flags.FlagValues], None], devices: bool = False
) -> None:
    """Parses the command line and calls `main`; what ends it early is one line.

    With `devices` JAX's devices are asked for before `main`; a binary that can be one of several processes leaves that to
    `distributed.initialize`.

    `--version` alone prints the version. Exit status 1 for a ValueError, OSError, FloatingPointError or MemoryError, RUN_AGAIN for
    a Preempted. One process of several ends all.
    """
    if sys.argv[1:] == ["--version"]:
        print(f"fingerprint_jax {fingerprint_jax.__version__}")
        return
    others = set(flags.FLAGS)
    define_flags(flags.FLAGS)
    for flag in set(flags.FLAGS) - others:  # --help shows those of the main module, wherever they are defined
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag])

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
        keep_freed_memory()
        collect_rarely()
        environment.settle()
        if path := compiled_dir():
            jax.config.update("jax_compilation_cache_dir", str(path))
        try:
            if devices:
                distributed.start_devices()
            with _fields_of_runs():
                main(flags.FLAGS)
        except (ValueError, OSError, FloatingPointError, MemoryError) as error:
            distributed.settle()
            distributed.leave(1, f"error: {_line(error)}")
            sys.exit(f"{name}: error: {_line(error)}")
        except Preempted as stop:
            distributed.leave(RUN_AGAIN, str(stop))
            print(f"{name}: {stop}", file=sys.stderr)
            sys.exit(RUN_AGAIN)
        except Exception as error:
            if distributed.count() > 1:
                distributed.settle()
                traceback.print_exc()
                distributed.leave(1, f"{type(error).__name__}: {_line(error)}")
            raise

    def parse(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            if missing := re.findall(r"flag --(\w+)=None: Flag --\1 must have a value", str(error)):
                sys.exit(f"{name}: error: missing: " + "; ".join(f"--{flag} ({flags.FLAGS[flag].help})" for flag in missing))
            sys.exit(f"{name}: error: {_line(error)}")

    app.run(guarded, flags_parser=parse)


@contextlib.contextmanager
def _fields_of_runs() -> Generator[None]:
    """A field that the config of a run of --workdir or --sweep lacks is a ValueError; it says who asked: the code may be at fault.

    Not where the binary takes a --config: then that may lack the field, and the traceback stays.
    """
    places = {"workdir": "config.json", "sweep": "*/config.json"} if "config" not in flags.FLAGS else {}
    given = {str(flags.FLAGS[name].value or ""): place for name, place in places.items() if name in flags.FLAGS}
    try:
        yield
    except RecursionError as error:
        raise ValueError("nested too deeply: does a run name itself, by ensemble.runs, features.run or init_from?") from error
    except (AttributeError, KeyError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        asked = [frame for frame in frames if frame.filename != config_dict.__file__][-1]
        runs = [folder for folder, place in given.items() if folder and any(Path(folder).glob(place))]
        if asked is frames[-1] or not runs:
            raise
        name = str(error.args[0]).splitlines()[0].strip(QUOTES)
        place = f"{Path(asked.filename).name}, line {asked.lineno}"
        raise ValueError(
            f"{runs[0]}: its config, or that of a run it uses, has no field {name} ({place}):"
            " a run of an older version; train it anew, or write the field into config.json as a new run has it"
        ) from error


def _line(error: Exception) -> str:
    # What libraries say on many lines, tracebacks even, ends with the reason.
    line = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:  # a write does not say where
        line += "".join(f"; {place} is full" for place in _full())
    return names.printable(line)  # a name of a stranger may hold what a terminal obeys


def _full() -> list[Path]:
    """The places that this process writes to and that have less than a megabyte left."""
    named = [flags.FLAGS[name].value for name in ("workdir", "data_dir", "output_dir") if name in flags.FLAGS]
    paths = [Path(path).absolute() for path in (*filter(None, named), tempfile.gettempdir(), "/dev/shm")]
    places = [next(path for path in (path, *path.parents) if path.exists()) for path in paths]
    return [place for place in dict.fromkeys(places) if shutil.disk_usage(place).free < 2**20]
