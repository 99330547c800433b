"""What the binaries share: flags of their own, one line for what the user can mend."""

import sys
from collections.abc import Callable

from absl import app, flags

from fingerprint_jax.preemption import RUN_AGAIN, Preempted


def run(name: str, define_flags: Callable[[flags.FlagValues], None], main: Callable[[flags.FlagValues], None]) -> None:
    """Parses the command line and calls `main`; what ends it early is one line.

    Exit status 1 for a ValueError, OSError or FloatingPointError, RUN_AGAIN for a Preempted.
    """
    define_flags(flags.FLAGS)

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
        try:
            main(flags.FLAGS)
        except (ValueError, OSError, FloatingPointError) as error:
            sys.exit(f"{name}: error: {_line(error)}")
        except Preempted as stop:
            print(f"{name}: {stop}", file=sys.stderr)
            sys.exit(RUN_AGAIN)

    def parse(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            sys.exit(f"{name}: error: {_line(error)}")
        except AttributeError as error:  # of ml_collections, for --config.<field>
            field = _line(error).strip("\"'")
            sys.exit(f"{name}: error: the config has no field {field}")

    app.run(guarded, flags_parser=parse)


def _line(error: Exception) -> str:
    # What libraries say on many lines, tracebacks even, ends with the reason.
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
