"""Faults injected into real processes and files. The suite runs a few of each, `make faults` all, and prints what it counted."""

import time

import pytest

from tests.conftest import FULL_FAULTS as FULL
from tests.faults import trainer

_TABLE: list[tuple[str, str, str]] = []


@pytest.fixture(scope="session")
def counts():
    """Few of a fault in the suite, many in `make faults`."""
    return lambda few, many: many if FULL else few


@pytest.fixture(scope="session")
def report():
    """Adds a row to the table: fault, number injected, what was seen."""
    return lambda *row: _TABLE.append(tuple(map(str, row)))


@pytest.fixture(scope="session")
def whole(data_dir, tmp_path_factory):
    """A training that nobody disturbed: workdir, state, seconds. In `make faults` the second of two: the first compiles."""
    for name in ("first", "second")[: 2 if FULL else 1]:
        workdir = tmp_path_factory.mktemp(name) / "run"
        begin = time.monotonic()
        trainer.finish(data_dir, workdir)
        seconds = time.monotonic() - begin
    return workdir, trainer.state(workdir), seconds


def pytest_terminal_summary(terminalreporter):
    if _TABLE and FULL:
        terminalreporter.write_line("\n| fault | injected | seen |\n|---|---|---|")
        for row in _TABLE:
            terminalreporter.write_line(f"| {' | '.join(row)} |")
