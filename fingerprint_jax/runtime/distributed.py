"""Several processes, one run: each executes the same program, and each step runs on the devices of all.

Process 0 alone reads and writes the files of a run, checkpoints apart, and tells the others what it read (`first`): every decision
is then the same on all, whatever a file system shows to whom. For that there is a socket from it to each of the others. A socket is
closed with its process, however that ends, so that the others know at once.

JAX brings processes together, and its `multihost_utils` gather where they serve as well. The sockets stay for what JAX has not. Its
heartbeat sees after HEARTBEAT seconds that a process is gone, and then aborts the others over a page, without the exit status and
the line of the one that ended. Its preemption service knows SIGTERM alone. Of what could carry the values of `first`, where a
socket is there anyway, the key-value store is private, and a broadcast is a program of the devices, compiled for each shape, which
all have to know before (docs/cluster.md has the figures, `benchmarks/processes.py` measures them).
"""

import atexit
import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from fingerprint_jax.runtime import environment
from fingerprint_jax.runtime.preemption import RUN_AGAIN

if TYPE_CHECKING:
    from jax.sharding import Mesh

# JAX is imported where it is needed: the worker processes of `features`, which are to start quickly, import this file too.

VARIABLES = ("FINGERPRINT_COORDINATOR", "FINGERPRINT_PROCESSES", "FINGERPRINT_PROCESS")
PATIENCE = 300  # seconds that a process waits for the others at the beginning
HEARTBEAT = 20  # seconds without a sign of life of a process after which JAX ends the others

_index, _count = 0, 1
_channel: "_Channel | None" = None
_inside_first = False


def define_flags(values: flags.FlagValues) -> None:
    """The flags of a binary that can be one process of several."""
    flags.DEFINE_string("coordinator", None, "Several processes: HOST:PORT of process 0, one for all of them.", flag_values=values)
    flags.DEFINE_integer("processes", None, "Several processes: how many.", flag_values=values)
    flags.DEFINE_integer("process", None, "Several processes: the number of this one, from 0 on.", flag_values=values)


def command(values: flags.FlagValues) -> str:
    """What all processes are asked to do: the flags of the binary, but for those of its config and for where things lie.

    Configs and data are compared with the run (`runs/start.py`); a copy of the data may lie elsewhere on each machine.
    """
    apart = ("coordinator", "processes", "process", "workdir", "data_dir", "config")
    own = [name for name in values if name.partition(".")[0] not in apart]
    own = [name for name in own if not str(values.find_module_defining_flag(name)).startswith("absl")]
    return json.dumps({name: values[name].value for name in sorted(own)}, default=str)


def settings(given: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[str, int, int] | None:
    """(host:port of process 0, number of processes, number of this one); None for a single process.

    Args:
        given: the flags by name; None where one is not given. They come before the environment.
        environ: VARIABLES, else what `srun` sets for more than one task.

    Raises ValueError where some are missing, or are no such values.
    """
    by_flag: dict[str, Any] = {f"--{name}": given[name] for name in ("coordinator", "processes", "process")}
    by_variable: dict[str, Any] = {name: environ.get(name) or None for name in VARIABLES}
    for known in (by_flag, by_variable):
        if missing := [name for name, value in known.items() if value is None]:
            if len(missing) < len(known):
                raise ValueError(f"{', '.join(missing)} missing: one process of several needs {', '.join(known)}")
            continue
        (address, coordinator), (many, processes), (own, process) = known.items()
        for name, value, least in ((many, processes, 1), (own, process, 0)):
            if not re.fullmatch("[0-9]+", str(value)) or int(value) < least:
                raise ValueError(f"{name}={value}: give a whole number from {least} on")
        if int(process) >= int(processes):
            raise ValueError(f"{own}={process}: with {many}={processes} give 0 to {int(processes) - 1}")
        if not re.fullmatch(r"[^\s]+:[0-9]+", coordinator) or not 0 < int(coordinator.rpartition(":")[2]) < 2**16:
            raise ValueError(f"{address}={coordinator}: give host:port, for example node1:12345")
        return (coordinator, int(processes), int(process)) if int(processes) > 1 else None
    # Not SLURM_NTASKS: a batch script without `srun` has it too, and is one process.
    if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) < 2 or _in_terminal(environ):
        return None
    first = re.match(r"([^,\[]+)(?:\[([0-9]+))?", environ["SLURM_STEP_NODELIST"])  # node[07-12,15],other
    assert first
    port = 61440 + (16 * int(environ["SLURM_JOB_ID"]) + int(environ["SLURM_STEP_ID"])) % 4096  # above those that Linux gives away
    return f"{first[1]}{first[2] or ''}:{port}", int(environ["SLURM_STEP_NUM_TASKS"]), int(environ["SLURM_PROCID"])


def _in_terminal(environ: Mapping[str, str]) -> bool:
    """Whether this process runs in a shell that `srun --pty` has started: only the first task of that step has a terminal.

    SLURM_PTY_PORT alone does not say so, since it is handed on to what `srun` starts there.
    """
    task = environ.get("SLURM_TASK_PID", "")
    if "SLURM_PTY_PORT" not in environ or task == str(os.getpid()):
        return False
    try:
        return os.readlink(f"/proc/{task}/fd/0").startswith("/dev/pts/")
    except OSError:
        return False


def gpus_of_task(environ: Mapping[str, str]) -> list[int] | None:
    """Positions of the GPUs that a task of Slurm takes of those it sees; None: all of them.

    Tasks of a node see the same GPUs, unless `srun` has divided them (--gpus-per-task): then each takes an equal share.

    Raises ValueError where they cannot be divided.
    """
    tasks = int(environ.get("SLURM_STEP_NUM_TASKS", 1)) // int(environ.get("SLURM_STEP_NUM_NODES", 1))
    seen = [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if tasks < 2 or len(seen) < 2 or "SLURM_GPUS_PER_TASK" in environ:
        return None
    share, rest = divmod(len(seen), tasks)
    if rest:
        raise ValueError(f"{tasks} tasks see {len(seen)} GPUs of their node: give as many GPUs as tasks, or a multiple")
    own = int(environ["SLURM_LOCALID"])
    return list(range(own * share, (own + 1) * share))


def initialize(name: str, values: flags.FlagValues) -> None:
    """Meets the other processes where there are some; before any call that starts JAX's backend.

    Args:
        name: of the binary, for its last line.
        values: of `define_flags`.

    Raises ValueError as `settings` and `start_devices` do, for a port that is taken, and where a process has another `command` than
    process 0. Where the others are not there within PATIENCE seconds the process ends with one line.
    """
    global _index, _count, _channel
    found = settings({flag: values[flag].value for flag in ("coordinator", "processes", "process")}, os.environ)
    if found is None:
        start_devices()
        return
    import jax

    # Its service would keep SIGTERM from a process that has no handler of its own.
    jax.config.update("jax_enable_preemption_service", False)
    coordinator, count, index = found
    alone = f"process {index} of {count} does not meet the others at {coordinator}"

    def give_up() -> None:
        print(
            f"{name}: error: {alone} within {PATIENCE} s; is each started, with the same coordinator?", file=sys.stderr, flush=True
        )
        os._exit(1)

    timer = threading.Timer(PATIENCE, give_up)  # before JAX does, which aborts the process over many lines
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            local_device_ids=gpus_of_task(os.environ),
            cluster_detection_method="deactivate",  # it gives each task of Slurm one GPU, however many there are
            initialization_timeout=PATIENCE + 60,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=PATIENCE,
        )
    except RuntimeError as error:
        raise ValueError(f"{alone}: {error}") from None
    finally:
        timer.cancel()
    if jax.default_backend() == "cpu":
        # A program that one process compiles and another reads from the cache runs its exchanges in two orders there, and both
        # processes wait for ever (seen with jax 0.12, in the first step).
        jax.config.update("jax_enable_compilation_cache", False)
    _index, _count = index, count
    start_devices()
    if index:
        logging.getLogger("fingerprint_jax").setLevel(logging.ERROR)  # what all would say is said once
    _channel = _Channel(name, coordinator.rpartition(":")[0])
    atexit.register(_channel.close)  # before JAX's own, which waits for the others
    require_same(command(values), "other flags")


def start_devices() -> None:
    """Starts JAX's backend, after the processes have met.

    Raises ValueError where the devices that are asked for are not there, or this jax is too old for them.
    """
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = [name for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "CUDA_VISIBLE_DEVICES") if name in os.environ]
        given = ", ".join(f"{name}={os.environ[name]!r}" for name in asked) or "JAX"
        reason = (str(error).strip().splitlines() or ["no platform of that name was started"])[0].partition(" (set ")[0]
        raise ValueError(
            f"{given}: no such devices here ({reason}); unset it, or compute on the processor by JAX_PLATFORMS=cpu"
        ) from None
    environment.check_version(jax.default_backend())


def index() -> int:
    """The number of this process."""
    return _index


def count() -> int:
    """How many processes there are."""
    return _count


def first(function: Callable[[], Any]) -> Any:
    """The value of a function that process 0 calls, on all processes: of JSON types and arrays, a tuple becomes a list.

    A ValueError, OSError or FloatingPointError of it is raised on all. Within the function, which has only the devices of process
    0, `first` is a plain call.
    """
    global _inside_first
    if _channel is None or _inside_first:
        return function()
    if _index:
        kind, *content = _decode(_channel.values.get())
        if kind == "value":
            return content[0]
        raise {"OSError": OSError, "FloatingPointError": FloatingPointError}.get(kind, ValueError)(content[0])
    _inside_first = True
    try:
        message = _encode(["value", function()])
    except (ValueError, OSError, FloatingPointError) as error:
        known = (OSError, FloatingPointError, ValueError)
        kinds = (kind.__name__ for kind in known if isinstance(error, kind))  # pyright: ignore[reportUnnecessaryIsInstance]
        _channel.tell(_VALUE + _encode([next(kinds), str(error)]))
        raise
    finally:
        _inside_first = False
    _channel.tell(_VALUE + message)
    return _decode(message)[1]


def by_first(function: Callable[..., None]) -> Callable[..., None]:
    """A function that does something on process 0 and nothing on the others."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> None:
        if not _index:
            function(*args, **kwargs)

    return call


def require_same(value: str, what: str) -> None:
    """Raises ValueError on all processes where one of them has another value than process 0; `what` says what that is."""
    if _channel is None:
        return
    own = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint32)
    found = _gathered(np.concatenate([np.array([_index], np.uint32), own]))
    (first,) = np.unique(found[found[:, 0] == 0], axis=0)
    if (other := (found[:, 1:] != first[1:]).any(axis=1)).any():
        raise ValueError(f"process {found[other, 0].min()} has {what} than process 0: give all the same")


def agreed(signalled: Callable[[], str], mesh: "Mesh") -> Callable[[], str]:
    """The name of a signal that any process has got, '' for none: the same on all, which call it equally often.

    Args:
        signalled: the name of the signal that this process has got, '' for none.
        mesh: all devices.

    Several processes agree by a reduction over the devices, behind the step that is dispatched; each call reads that of the call
    before, so that it waits for nothing that the loop does not wait for. A single process is told at once.
    """
    if _count == 1:
        return signalled
    import jax
    import jax.numpy as jnp

    from fingerprint_jax.runtime import sharding

    highest = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))
    pending = []

    def agree() -> str:
        name = signalled()
        own = np.full(len(mesh.local_devices), getattr(signal, name) if name else 0, np.int32)
        pending.append(highest(jax.make_array_from_process_local_data(sharding.split(mesh), own)))
        number = int(jax.device_get(pending.pop(0))) if len(pending) > 1 else 0
        return signal.Signals(number).name if number else ""

    return agree


def settle() -> None:
    """After an error: where the reason is that another process is gone, this one ends here, with a line that says so.

    A second, in which `_Channel` notices it: those that are still there do not say so, so that there is nothing else to wait for.
    """
    if _channel is not None:
        time.sleep(1)


def leave(status: int, text: str) -> None:
    """Ends all of several processes with an exit status and a line of this one; does nothing where it is the only one."""
    if _channel is not None:
        _channel.end(status, text, f"process {_index}: ")


def _encode(value: Any) -> bytes:
    """JSON types and arrays, without pickles."""
    arrays: list[np.ndarray] = []

    def place(x: object) -> dict:
        if not isinstance(x, np.ndarray):
            raise TypeError(f"{type(x).__name__} cannot be told to other processes")
        arrays.append(x)
        return {"ndarray": len(arrays) - 1}

    text, buffer = json.dumps(value, default=place), io.BytesIO()
    np.savez(buffer, np.array(text), *arrays)
    return buffer.getvalue()


def _decode(content: bytes) -> Any:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        text, *arrays = (file[f"arr_{i}"] for i in range(len(file.files)))
    return json.loads(str(text), object_hook=lambda x: arrays[x["ndarray"]] if x.keys() == {"ndarray"} else x)


_VALUE, _END, _CLOSE = b"v", b"e", b"c"  # the first byte of a message


class _Channel:
    """The sockets between process 0 and the others.

    Whichever process ends otherwise than by `close`, the others end too: with its status and line where it has said them, else with
    RUN_AGAIN.
    """

    def __init__(self, name: str, host: str) -> None:
        self.values: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # of `first`, on all but process 0
        self._name, self._ending, self._closing = name, threading.Lock(), False
        key = os.urandom(16)
        listener = Listener(("", 0), backlog=_count, authkey=key) if _index == 0 else None
        port = listener.address[1] if listener else 0
        told = _gathered(np.array([_index, int(port), *key], np.uint32))
        devices = np.bincount(told[:, 0]).tolist()
        if len(set(devices)) > 1:
            raise ValueError(f"the processes have {devices} devices: each needs as many as the others")
        (_, port, *key), *_ = told[told[:, 0] == 0].tolist()
        self._peers: dict[int, Connection] = {}
        while listener and len(self._peers) < _count - 1:
            try:
                connection = listener.accept()
            except (AuthenticationError, EOFError, OSError):  # somebody else's
                continue
            self._peers[int.from_bytes(connection.recv_bytes(), "big")] = connection
        if listener:
            listener.close()
        else:
            self._peers[0] = Client((host, port), authkey=bytes(key))
            self._peers[0].send_bytes(_index.to_bytes(4, "big"))
        for number, connection in self._peers.items():
            _notice_lost_machines(connection)
            threading.Thread(target=self._listen, args=(number, connection), daemon=True).start()

    def tell(self, message: bytes) -> None:
        """Sends a message to all peers."""
        for connection in self._peers.values():
            try:
                connection.send_bytes(message)
            except OSError:  # it is gone, which `_listen` notices
                pass

    def _listen(self, number: int, connection: Connection) -> None:
        try:
            while True:
                message = connection.recv_bytes()
                if message[:1] == _VALUE:
                    self.values.put(message[1:])
                elif message[:1] == _CLOSE:
                    return
                else:
                    self.end(*json.loads(message[1:]))
        except (EOFError, OSError):
            if not self._closing:
                self.end(RUN_AGAIN, f"process {number} of {_count} is gone, killed or with its machine; the same command continues")

    def end(self, status: int, text: str, origin: str = "") -> None:
        """Ends this process at once, after a line on standard error, and all others; `origin` is put before the text for them."""
        self._ending.acquire()  # the first one decides
        with contextlib.suppress(OSError, ValueError):  # a full disk or a closed pipe: the others are told all the same
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            print(f"{self._name}: {text}", file=sys.stderr, flush=True)
        self.tell(_END + json.dumps([status, origin + text]).encode())
        os._exit(status)  # not sys.exit: JAX would wait for the others

    def close(self) -> None:
        """Says that this process ends as it should."""
        self._closing = True
        self.tell(_CLOSE)


def _gathered(row: np.ndarray) -> np.ndarray:
    """The rows [N] of all processes, one a device: [devices,N].

    It connects all devices. CPUs have 30 s for that, and at the first step one process may compile for longer than the others.
    """
    import jax
    from jax.experimental import multihost_utils

    from fingerprint_jax.runtime import sharding

    mesh = sharding.make_mesh()
    own = np.tile(row, (jax.local_device_count(), 1))
    rows = jax.make_array_from_process_local_data(sharding.split(mesh), own, (mesh.size, len(row)))
    return multihost_utils.process_allgather(rows, tiled=True)


def _notice_lost_machines(connection: Connection) -> None:
    # A process that ends closes its sockets; for a machine that is cut off the kernel asks after 5 s, and four times more.
    options = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 4}  # Linux
    with socket.socket(fileno=os.dup(connection.fileno())) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            if hasattr(socket, name):
                own.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
