"""What the benchmarks share: a process with another library, sides that take turns, and ratios with their spread."""

import json
import os
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any


class PeerError(RuntimeError):
    """What the peer said it cannot do, or that it ended."""


class Peer:
    """A process with another library, that answers the requests of a script beside this file, one JSON object a line.

    It works only between a request and its answer, so that two sides never share the cores. `environment` is added to that of
    this process.
    """

    def __init__(self, python: str, script: str = "torch_peer.py", **environment: str) -> None:
        path, env = Path(__file__).parent / script, os.environ | environment
        self.process = subprocess.Popen([python, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.about = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        if not line:
            raise PeerError(f"the peer ended with status {self.process.wait()}; its error stands above")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def ask(self, **request: Any) -> dict:
        """The answer to a request. Raises PeerError where it holds an `error`, or where the peer has ended."""
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(above: list[float], below: list[float]) -> dict[str, float]:
    """The spread of the quotients, one a repeat."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def shown(figures: dict[str, float], form: str = ".2f") -> str:
    """A spread as text: `1.04 (1.02 to 1.05)`."""
    return "{median:F} ({min:F} to {max:F})".replace("F", form).format(**figures)


def rounds(run: Callable[[int], float], seconds: float) -> int:
    """How many rounds fill so many seconds, at least one; `run` gives the seconds of some rounds, and has run before."""
    return max(1, round(seconds / run(1)))


def turns(sides: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Every side once, one after the other, and so on: what its function gave, [repeats] a side."""
    found = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            found[name].append(run())
    return found
