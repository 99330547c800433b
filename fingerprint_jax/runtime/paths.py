"""One rule for paths on the command line and in configs: a leading `~` is the home directory, `~name` that of another user.

A shell leaves it to the program where it stands behind `=`.
"""

import os
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from fingerprint_jax import Config

# The fields of a config that are paths, at any depth.
FIELDS = {"data_dir", "extra_labels", "init_from", "runs", "run", "cache_dir", "weights"}


def expanded(text: str) -> str:
    """A path with its leading `~` or `~name` in full; any other text as it is.

    Raises ValueError where there is no such home directory.
    """
    found = os.path.expanduser(text)
    if found.startswith("~"):
        home = text.partition("/")[0]
        raise ValueError(f"{text!r}: no home directory of {home[1:] or 'this user'} is known; ./{home} is a folder of that name")
    return found


def named(text: str) -> str:
    """NAME=PATH with the path in full."""
    name, equals, path = text.partition("=")
    return f"{name}{equals}{expanded(path)}"


class _Parser(flags.ArgumentParser):
    def __init__(self, expand: Callable[[str], str]) -> None:
        self._expand = expand

    def parse(self, argument: str) -> str:
        return self._expand(argument)

    def flag_type(self) -> str:
        return "path"


class _ListParser(flags.ListParser):
    def __init__(self, expand: Callable[[str], str]) -> None:
        super().__init__()
        self._expand = expand

    def parse(self, argument: str | list[str]) -> list[str]:
        return [self._expand(each) for each in super().parse(argument)]


def define(name: str, default: str | None, text: str, flag_values: flags.FlagValues, **options: Any) -> None:
    """A flag of one path, as `flags.DEFINE_string`."""
    flags.DEFINE(_Parser(expanded), name, default, text, flag_values, flags.ArgumentSerializer(), **options)


def define_list(
    name: str, default: list[str] | None, text: str, flag_values: flags.FlagValues, pairs: bool = False, **options: Any
) -> None:
    """A flag of paths with commas between them, as `flags.DEFINE_list`; of NAME=PATH where they are `pairs`."""
    parser = _ListParser(named if pairs else expanded)
    flags.DEFINE(parser, name, default, text, flag_values, flags.CsvListSerializer(","), **options)


def define_pairs(name: str, text: str, flag_values: flags.FlagValues) -> None:
    """A flag NAME=PATH that may be given several times, as `flags.DEFINE_multi_string`."""
    flags.DEFINE_multi(_Parser(named), flags.ArgumentSerializer(), name, [], text, flag_values)


def expand_fields(config: Config) -> None:
    """Puts the FIELDS of a config in full, in place. Of `weights` each of those that are joined by +.

    Raises ValueError that names the field.
    """
    for field, value in config.items():
        if isinstance(value, ConfigDict):
            expand_fields(value)
        elif (new := expanded_field(field, value)) != value:
            config[field] = new


def expanded_field(field: str, value: Any) -> Any:
    """The value of a field of a config as `expand_fields` puts it; a list, as JSON has it, stands for a tuple."""
    name = field.rpartition(".")[2]
    if not value or name not in FIELDS:
        return value
    several = isinstance(value, (tuple, list))
    parts = value if several else value.split("+") if name == "weights" else [value]
    try:
        found = [expanded(part) for part in parts]
    except ValueError as error:
        raise ValueError(f"config.{field}={value!r}: {error}") from None
    return type(value)(found) if several else "+".join(found)
