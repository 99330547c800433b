"""Shared memory is known by its name, and what a killed process left in it goes with the next start."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from grain.multiprocessing import SharedMemoryArray

from fingerprint_jax.data import shared
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not shared.MEMORY.is_dir(), reason="needs Linux's /dev/shm")


def _start(code: str, *before: str) -> subprocess.Popen:
    """A process of its own session that runs some code; what it gives away stands in /dev/shm as its first line says."""
    head = "import os, signal, time\nimport numpy as np\nfrom fingerprint_jax.data import shared\n"
    return subprocess.Popen(
        [*before, sys.executable, "-c", head + textwrap.dedent(code)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _left(name: str) -> list[str]:
    return sorted(path.name for path in shared.MEMORY.glob(f"*{name}*"))


HOLDER = """
    from multiprocessing import get_context
    name = shared.claim()
    array = shared.give(np.ones(5000), name)
    semaphore = get_context("spawn").Semaphore(1)
    print(name, flush=True)
    time.sleep(600)
"""


def test_an_array_is_given_under_a_name_of_this_process_and_taken_once():
    name = shared.claim()
    before = _left(name)  # the semaphores of other tests, too
    assert shared.claim() == name in before
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    given = shared.give(pixels, name)
    np.testing.assert_array_equal(given, pixels)
    assert _left(name) == sorted([*before, given.metadata.name])
    taken = SharedMemoryArray.from_metadata(given.metadata)
    taken.unlink_on_del()
    del taken
    patience = time.monotonic() + 10
    while _left(name) != before:  # grain removes it in a thread
        assert time.monotonic() < patience
        time.sleep(0.01)


def test_what_a_killed_process_left_is_removed_and_nothing_else():
    living, killed = _start(HOLDER), _start(HOLDER)
    foreign = shared.MEMORY / f"not-{os.getpid()}"
    foreign.touch()
    try:
        names = [process.stdout.readline().strip() for process in (living, killed)]
        assert all(names)
        shared._sweep()
        assert [len(_left(name)) for name in names] == [3, 3]  # the lock, the array, the semaphore
        os.killpg(killed.pid, signal.SIGKILL)  # with it Python's resource tracker, which would remove them
        killed.wait()
        patience = time.monotonic() + 10
        while _left(names[1]):  # a lock goes when its process has wholly ended
            shared._sweep()
            assert time.monotonic() < patience
        assert len(_left(names[0])) == 3 and foreign.exists()
    finally:
        foreign.unlink()
        for process in (living, killed):
            process.kill()  # alone: the tracker removes what it left
            process.communicate()
    patience = time.monotonic() + 10
    while _left(names[0]):
        assert time.monotonic() < patience
        time.sleep(0.05)


def test_what_has_no_lock_is_removed_and_what_is_of_another_user_is_not(monkeypatch):
    texts = ("00000000.11111111", "00000001", "data.tar", "00000002.d")
    orphan, link, foreign, folder = (shared.MEMORY / f"fingerprint-{text}" for text in texts)
    orphan.touch()
    foreign.touch()
    folder.mkdir()
    link.symlink_to("/dev/null")
    try:
        with monkeypatch.context() as other:
            other.setattr(shared.os, "getuid", lambda: 12345)
            shared._sweep()
        assert orphan.exists() and link.is_symlink()
        shared._sweep()
        assert not orphan.exists() and link.is_symlink()  # it is no lock of ours
        assert foreign.exists() and folder.exists()  # of somebody who calls their own so
    finally:
        foreign.unlink()
        folder.rmdir()
        link.unlink()


def test_what_another_process_removes_meanwhile_is_passed_over(monkeypatch, tmp_path):
    class Memory(type(tmp_path)):
        def glob(self, pattern):
            return [self / "fingerprint-00000000.11111111"]  # listed, and gone

    monkeypatch.setattr(shared, "MEMORY", Memory(tmp_path))
    shared._sweep()


@pytest.mark.parametrize("moment", ["shared_memory.SharedMemory", "fcntl.flock"], ids=["made", "opened"])
def test_a_lock_that_another_start_took_for_a_dead_ones_is_made_anew(moment):
    """Two trainers start at once, and one of them sweeps between the lines in which the other makes its lock and holds it."""
    process = _start(
        f"""
        first = shared.MEMORY / f"fingerprint-{{os.getpid():08x}}"
        tokens = iter([f"{{os.getpid():08x}}", "f" + f"{{os.getpid():07x}}"])
        shared.secrets.token_hex = lambda _: next(tokens)
        call = shared.{moment}
        def swept(*args, **kwargs):
            result = call(*args, **kwargs)
            first.unlink(missing_ok=True)
            return result
        shared.{moment} = swept
        shared._sweep = lambda: None
        name = shared.claim()
        print(name, name != first.name, (shared.MEMORY / name).exists())
        """
    )
    text, errors = process.communicate()
    name, *facts = text.split()
    assert process.returncode == 0 and not errors and facts == ["True", "True"] and not _left(name)


def test_a_process_that_ends_leaves_nothing_and_says_nothing():
    done = _start("name = shared.claim()\nprint(name)")
    text, errors = done.communicate()
    assert done.returncode == 0 and not errors and not _left(text.strip())


def test_a_reader_killed_while_it_makes_a_segment_leaves_none():
    """Between the two calls in which Python makes it and tells the resource tracker of it."""
    process = _start(
        """
        print(shared.claim(), flush=True)
        shared.shared_memory.os.ftruncate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        shared.give(np.ones(5000), shared.claim())
        """
    )
    name = process.communicate()[0].strip()  # the tracker has ended, too: it has the other end of the error output
    assert process.returncode == -signal.SIGKILL and name and not _left(name)


@pytest.mark.skipif(not shutil.which("unshare") or os.getuid(), reason="mounts a small /dev/shm, which takes root")
def test_full_memory_is_one_line_and_no_dead_process():
    code = """
        try:
            shared.give(np.ones(2**20), shared.claim())
        except OSError as error:
            print(error)
        print(os.listdir("/dev/shm") == [shared.claim()])
    """
    process = _start(code, "unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$0" "$@"')
    text, errors = process.communicate()
    if "mount" in errors or "unshare" in errors:
        pytest.skip(errors)
    line, alone = text.splitlines()
    assert process.returncode == 0 and alone == "True"
    assert line.startswith(
        "/dev/shm, where readers hand images over, has 1.00 MiB free of 1.00, and 8.00 are needed: use fewer readers"
    )


def test_room_is_asked_for_before_it_is_needed():
    shared.require(1)
    with pytest.raises(ValueError, match=r"/dev/shm, .* MiB free of .* needed: use fewer readers .* --shm-size=1g"):
        shared.require(2**62)
