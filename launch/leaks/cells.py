"""What a benchmark is of, and the figures that it has."""

import dataclasses
from typing import Any

from fingerprint_jax import Config
from launch import sweep

# A value with its interval, which may have no bound, and where one is tested its p.
Figure = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
    """What decides how much a generator leaks.

    Args:
        images: it is trained on, at most: patients stay whole.
        config: of its training, with its steps and its seed.
        overrides: `--set` of it.
    """

    images: int
    config: Config
    overrides: sweep.Overrides

    def name(self, kind: str) -> str:
        """Of its folder, which begins with a kind."""
        fields = {"images": self.images, "num_steps": self.config.num_steps, "seed": self.config.seed, **self.overrides}
        return sweep.name(f"{kind}.py", fields)
