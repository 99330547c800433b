"""What our sockets between processes do, beside what JAX has for it.

    python -m benchmarks.processes

Two processes of two CPU devices each, on this machine. A value of process 0 goes to the other one, which waits for it: by `first`
of `runtime/distributed.py`, by the key-value store of JAX's coordination service, and by `multihost_utils.broadcast_one_to_all`,
where both know its size; milliseconds, the least of several. Then one is killed: seconds until the other has ended, its status, and
the lines that it writes.
"""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
from absl import flags
from jax._src import distributed as private  # the store has no public name
from jax.experimental import multihost_utils

from fingerprint_jax.runtime import cli, distributed

SIZES = {100: 20, 40_000_000: 5}  # {bytes: times}


def start(what: str, own: int, port: int) -> subprocess.Popen[str]:
    """Process `own` of two."""
    env = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_ENABLE_PREEMPTION_SERVICE": "false",
        "TF_CPP_MIN_LOG_LEVEL": "1",
    }
    names = ("--coordinator=127.0.0.1", "--processes=2", f"--process={own}")
    command = [sys.executable, "-m", "benchmarks.processes", f"--what={what}", f"{names[0]}:{port}", *names[1:]]
    return subprocess.Popen(command, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def pair(what: str) -> list[subprocess.Popen[str]]:
    """Both, at a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(what, own, port) for own in (0, 1)]


def latencies(values: flags.FlagValues) -> None:
    """Process 1 prints a row for each size; the first 8 bytes of a value are the time at which it was sent."""
    distributed.initialize("processes", values)
    client, number = private.global_state.client, 0

    def by_store(value: np.ndarray) -> np.ndarray:
        if distributed.index() == 0:
            client.key_value_set_bytes(str(number), value.tobytes())  # pyright: ignore[reportOptionalMemberAccess]
            return value
        found = client.blocking_key_value_get_bytes(str(number), 60_000)  # pyright: ignore[reportOptionalMemberAccess]
        return np.frombuffer(found, np.uint8)

    ways = {"first": lambda value: distributed.first(lambda: value), "the key-value store": by_store}
    ways["broadcast_one_to_all"] = multihost_utils.broadcast_one_to_all
    for way, send in ways.items():
        for size, times in SIZES.items():
            found = []
            for _ in range(times):
                value = np.zeros(size, np.uint8)
                number += 1
                client.wait_at_barrier(str(number), 60_000)  # pyright: ignore[reportOptionalMemberAccess]
                time.sleep(0.02)  # until the other one waits
                value[:8] = np.frombuffer(np.float64(time.time()).tobytes(), np.uint8)
                value = np.asarray(send(value))
                found.append(1e3 * (time.time() - value[:8].view(np.float64)[0]))
            if distributed.index():
                print(f"| {way} | {size:,} bytes | {min(found):.3g} ms, the first {found[0]:.3g} ms |", flush=True)


def dead(what: str) -> str:
    """A row of what the other process does when one is killed."""
    processes = pair(what)
    for process in processes:
        assert process.stdout is not None and "here\n" in process.stdout
    processes[1].send_signal(signal.SIGKILL)
    begin = time.perf_counter()
    text = processes[0].communicate()[1]
    lines = [line for line in text.splitlines() if line.strip()]
    return f"| {what} | one is killed | {time.perf_counter() - begin:.1f} s, status {processes[0].returncode}, {len(lines)} lines |"


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary; `what` is of the processes that it starts."""
    flags.DEFINE_string("what", "", "latencies, our sockets, or JAX's heartbeat.", flag_values=values)
    distributed.define_flags(values)


def main(values: flags.FlagValues) -> None:
    """Prints a Markdown table."""
    if values.what == "latencies":
        latencies(values)
    elif values.what:
        if values.what == "our sockets":
            distributed.initialize("processes", values)
        else:
            own = (values.coordinator, values.processes, values.process)
            jax.distributed.initialize(*own, cluster_detection_method="deactivate", heartbeat_timeout_seconds=distributed.HEARTBEAT)
        print("here", flush=True)
        time.sleep(600)
    else:
        print("| by | what | figure |\n|---|---|---|", flush=True)
        print("".join(process.communicate()[0] for process in pair("latencies")), end="", flush=True)
        for what in ("our sockets", "JAX's heartbeat"):
            print(dead(what), flush=True)


if __name__ == "__main__":
    cli.run("processes", define_flags, main)
