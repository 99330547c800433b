"""Shared memory in which reader processes hand images over: named after its trainer, so that what a killed one left is known."""

import contextlib
import errno
import fcntl
import functools
import os
import re
import secrets
import shutil
from multiprocessing import resource_tracker, shared_memory, synchronize, util
from pathlib import Path

import numpy as np
from grain.multiprocessing import SharedMemoryArray

MEMORY = Path("/dev/shm")  # where Linux keeps it; elsewhere it has no place in the file system, and ends with its processes
_NAME = "fingerprint-"
_OURS = re.compile(rf"(sem\.)?{_NAME}[0-9a-f]{{8}}(\.[0-9a-f]{{8}})?")  # a lock, an array, a semaphore


@functools.cache
def claim() -> str:
    """What the names of this process's shared memory begin with; what dead processes left under such names is removed.

    Python's resource tracker removes what a killed process leaves, unless it is killed with it, as by Slurm or the end of a
    container. Hence a lock, a file of that name: it is held as long as the process lives, whatever the containers that share the
    memory.
    """
    _sweep()
    while True:
        name = _NAME + secrets.token_hex(4)
        lock = shared_memory.SharedMemory(name, create=True, size=1)
        if not MEMORY.is_dir() or _hold(name):
            break
        lock.close()
        resource_tracker.unregister(f"/{name}", "shared_memory")
    util.Finalize(None, lock.unlink, exitpriority=-1)  # when the readers have ended
    # The queues of readers have semaphores, which lie there, too. joblib names them in the same way.
    synchronize.SemLock._make_name = staticmethod(lambda: f"/{name}.{secrets.token_hex(4)}")  # pyright: ignore[reportAttributeAccessIssue]
    return name


def _hold(name: str) -> bool:
    """Whether this process has the new lock: another one, which sweeps, may take it for a dead one's before it is held."""
    try:
        file = os.open(MEMORY / name, os.O_RDWR)  # open to the end
    except FileNotFoundError:
        return False
    fcntl.flock(file, fcntl.LOCK_EX)
    if (MEMORY / name).exists():
        return True
    os.close(file)
    return False


def _sweep() -> None:
    found: dict[str, list[Path]] = {}
    for path in sorted(MEMORY.glob(f"*{_NAME}*")):
        with contextlib.suppress(FileNotFoundError):  # a process beside this one makes and removes them with every batch
            if _OURS.fullmatch(path.name) and path.lstat().st_uid == os.getuid():
                found.setdefault(path.name.removeprefix("sem.").partition(".")[0], []).append(path)
    for name, paths in found.items():
        try:
            file = os.open(MEMORY / name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:  # by the tracker, when all of its processes had ended
            file = None
        except OSError:  # not ours
            continue
        try:
            if file is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in paths[::-1]:  # the lock last
                path.unlink(missing_ok=True)
        except BlockingIOError:
            pass
        finally:
            if file is not None:
                os.close(file)


def give(array: np.ndarray, name: str) -> SharedMemoryArray:
    """A copy in shared memory under a name that begins with `name`, for grain to hand over; whoever receives it removes it.

    Raises OSError where there is no room: Linux would give the memory when it is first written to, and kill the process then.
    """
    name = f"{name}.{secrets.token_hex(4)}"
    resource_tracker.register(f"/{name}", "shared_memory")  # before it is there: a reader may be killed at any moment
    memory = shared_memory.SharedMemory(name, create=True, size=array.nbytes)
    if MEMORY.is_dir():
        file = os.open(MEMORY / name, os.O_RDWR)
        try:
            os.posix_fallocate(file, 0, array.nbytes)
        except OSError as error:
            memory.close()
            memory.unlink()
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(_full(array.nbytes)) from None
        finally:
            os.close(file)
    copy = SharedMemoryArray.from_shared_memory(memory, array.shape, array.dtype)
    np.copyto(copy, array)
    return copy


def require(count: int) -> None:
    """Raises ValueError unless so many bytes have room in shared memory."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free < count:
        raise ValueError(_full(count))


def _full(count: int) -> str:
    room = shutil.disk_usage(MEMORY)
    free, total, needed = (f"{x / 2**20:,.2f}" for x in (room.free, room.total, count))
    return (
        f"{MEMORY}, where readers hand images over, has {free} MiB free of {total}, and {needed} are needed: use fewer readers"
        " (data.workers; 0 needs none) or smaller batches, or make it larger (docker run --shm-size=1g; Kubernetes: an emptyDir of"
        " medium Memory there)"
    )
