"""What the binaries share: flags of their own, one line for what the user can mend."""

import sys
from collections.abc import Callable

from absl import app, flags


def run(name: str, define_flags: Callable[[flags.FlagValues], None], main: Callable[[flags.FlagValues], None]) -> None:
    """Parses the command line and calls `main`. A ValueError, OSError or FloatingPointError is one line and exit status 1."""
    define_flags(flags.FLAGS)

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
        try:
            main(flags.FLAGS)
        except (ValueError, OSError, FloatingPointError) as error:
            sys.exit(f"{name}: error: {error}")

    app.run(guarded)
