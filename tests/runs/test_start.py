"""What several processes have to have in common before a run is begun."""

import threading
import types

import pytest

from fingerprint_jax.runs import start
from fingerprint_jax.runtime import distributed, files


@pytest.mark.parametrize("place", ["shared", "late", "own", "none"])
def test_processes_that_do_not_share_the_work_directory_are_refused(place, tmp_path, monkeypatch):
    """Each would wait for the other's part of the first checkpoint."""
    (tmp_path / "first").mkdir()
    with files.locked(tmp_path / "first" / "lock"):
        held = (tmp_path / "first" / "lock").read_text()
    run = types.SimpleNamespace(workdir=tmp_path / place)
    run.outermost = run.workdir
    late = threading.Timer(1, lambda: (tmp_path / "first").rename(run.workdir))
    if place == "shared":
        (tmp_path / "first").rename(run.workdir)
    elif place == "late":  # on a file system of a network
        late.start()
    elif place == "own":  # a lock of an earlier training here
        run.workdir.mkdir()
        with files.locked(run.workdir / "lock"):
            pass
    said = []
    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(distributed, "first", lambda _: held)
    monkeypatch.setattr(distributed, "require_same", lambda value, what: said.append((value == held, what)))
    monkeypatch.setattr(start, "SEEN_S", 60 if place in ("shared", "late") else 0)
    start._require_one_folder(run)
    late.cancel()
    assert said == [(place in ("shared", "late"), f"another folder --workdir={run.workdir}")]
