"""Binaries in processes of their own that begin with everything imported: a start takes seconds, most of it imports.

They are forked from a server that has imported what they need (multiprocessing's forkserver), and are otherwise as `python -m`
starts them, in a session of their own. Tests of a start itself, of JAX's variables but for those of SETTINGS, which are read at its
import, and of processes that such a binary starts, which would share this one's resource tracker, take subprocess.
"""

import atexit
import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import jax
from jax._src import api

ROOT = Path(__file__).parents[1]
SETTINGS = {"JAX_NUM_CPU_DEVICES": int, "JAX_COMPILATION_CACHE_DIR": str}
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["fingerprint_jax.main", "fingerprint_jax.evaluate", "sklearn.model_selection"])


class Process:
    """`python -m MODULE ARGUMENTS` in a folder, else in the checkout: what tests ask of a subprocess.Popen."""

    def __init__(self, module: str, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._output, errors = (Path(self._folder.name) / name for name in ("output", "errors"))
        errors.touch()
        self.stderr: IO[str] = errors.open()
        arguments = (module, arguments, {**os.environ, **(env or {})}, cwd, self._output, errors)
        self._process = _SERVER.Process(target=_run, args=arguments)
        self._process.start()
        assert self._process.pid
        self.pid, self.kill, self.terminate = self._process.pid, self._process.kill, self._process.terminate

    def poll(self) -> int | None:
        """The exit status, minus a signal; None while it runs."""
        return self._process.exitcode

    returncode = property(poll)

    def send_signal(self, number: int) -> None:
        """To the process alone."""
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit status, once it has ended."""
        self._process.join(timeout)
        return self.poll()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the end: standard output, and standard error."""
        assert self.wait(timeout) is not None, f"not ended after {timeout} s: {self.stderr.read()}"
        with self._folder, self.stderr:
            return self._output.read_text(), self.stderr.read()


def _run(module: str, arguments: tuple[str, ...], environ: dict[str, str], cwd: Path, output: Path, errors: Path) -> None:
    os.setsid()
    os.chdir(cwd)
    sys.path.insert(0, str(cwd))
    os.environ.clear()
    os.environ.update(environ)
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, output, os.O_WRONLY | os.O_CREAT), (2, errors, os.O_WRONLY)):
        os.dup2(os.open(path, mode), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    sys.argv = [module, *arguments]
    for name, kind in SETTINGS.items():
        if name in environ:
            jax.config.update(name.lower(), kind(environ[name]))
    if sys.version_info >= (3, 13):  # a server forgets what imports have registered, JAX's wait for other processes among it
        atexit.register(api.clean_up)
    sys.modules.pop(module, None)  # the server has imported it, which runpy warns of
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # the end of a process of multiprocessing leaves these out
