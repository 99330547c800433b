"""A real Slurm (22.05 of Debian 12) on this machine alone: munged, slurmctld, slurmd in a directory, no systemd, no accounting."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
MpiDefault=none
ReturnToService=2
KillWait=60
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 Sockets=1 CoresPerSocket=2 ThreadsPerCore=1
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
{more}
"""


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    if absent := [name for name in (*DAEMONS, "sbatch", "squeue") if not _program(name)]:
        return f"Slurm is not installed: no {', '.join(absent)}"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextlib.contextmanager
def running(folder: Path, more: str = "") -> Iterator[dict[str, str]]:
    """Starts the daemons, waits for the node, and yields the environment that finds them; ends them and their jobs at the end.

    `more` are further lines of slurm.conf.

    A requeued job starts again after five seconds (`cred_expire`), not after Slurm's two minutes.
    """
    host, config = socket.gethostname(), folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, folder=folder, ports=_free_ports(2), more=more))
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    environment = {"SLURM_CONF": str(config)}
    munge = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    commands = (
        ["munged", "--foreground", "--force", *(f"--{flag}={folder}/munge.{end}" for flag, end in munge.items())],
        ["slurmctld", "-D", "-c", "-f", str(config)],
        ["slurmd", "-D", "-N", host, "-f", str(config)],
    )
    ready = (
        (folder / "munge.sock").exists,
        lambda: _says("is UP", ["scontrol", "ping"], environment),
        lambda: _says("idle", ["sinfo", "-h", "-o", "%T"], environment),
    )
    daemons: list[subprocess.Popen] = []
    with (folder / "daemons.log").open("ab") as log:
        try:
            for command, up in zip(commands, ready, strict=True):
                program = [_program(command[0]) or command[0], *command[1:]]
                daemons.append(subprocess.Popen(program, stdout=log, stderr=log, env=os.environ | environment))
                _wait(up, folder)
            yield environment
        finally:
            if len(daemons) == len(commands):
                subprocess.run(["scancel", "--user=root"], env=os.environ | environment, check=False)
                with contextlib.suppress(TimeoutError):  # what is left of a test that failed
                    _wait(lambda: not _says(" ", ["squeue", "-h"], environment), folder)
            for daemon in reversed(daemons):
                daemon.terminate()
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()


def _says(text: str, command: list[str], environment: dict[str, str]) -> bool:
    return text in subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False).stdout


def _wait(done, folder: Path, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise TimeoutError("\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log")))
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found
