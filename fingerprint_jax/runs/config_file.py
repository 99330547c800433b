"""Config files, FILE or FILE:variant, and the flags that name them: what is wrong with one is one line."""

import contextlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Generator
from pathlib import Path
from types import ModuleType

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from fingerprint_jax import Config
from fingerprint_jax.runs.config import GIVEN, walk
from fingerprint_jax.runtime import names, paths


def define_flag(name: str, text: str, values: flags.FlagValues, argv: list[str] | None = None) -> None:
    """A flag `--<name>=FILE:variant`, with `--<name>.<field>=value` for the fields of the config.

    Args:
        name: of the flag.
        text: its help.
        values: where it is defined.
        argv: the command line, where that is not the one of this process.

    A file that is no config, or a field that the config has not, is a `flags.Error` of one line.
    """
    config_flags.DEFINE_config_file(name, None, text, flag_values=values, sys_argv=argv)
    values[name].parser = _Parser(name, argv)  # that of ml_collections defers errors, and has the traceback in others


class _Parser(flags.ArgumentParser):
    def __init__(self, name: str, argv: list[str] | None) -> None:
        self.name, self._argv = name, argv

    def parse(self, argument: str) -> Config:
        try:
            config = read(argument)
        except ValueError as error:
            raise flags.IllegalFlagValueError(f"--{self.name}={argument}: {error}") from None
        for word in flags.FLAGS.read_flags_from_files(self._argv or sys.argv, force_gnu=False)[1:]:
            given = re.match(rf"-{{1,2}}(?:no)?{self.name}\.([^=]+)", word)
            if given and (text := missing_field(config, given[1], f"--{self.name}.") or of_outermost(given[1])):
                raise flags.IllegalFlagValueError(f"--{self.name}.{given[1]}: {text}")
        config.lock()
        return config

    def flag_type(self) -> str:
        return "config file"


def read(text: str) -> Config:
    """The config of FILE or FILE:variant, or of a published one by its name (`published`).

    Raises ValueError that says what is wrong with the file, and where in it.
    """
    file, *variant = text.split(":", 1)
    path = published(file) or Path(paths.expanded(file))
    if not file:
        raise ValueError("it is empty: name a config, such as quickstart")
    if path.is_dir():
        found = sorted(each.name for each in path.glob("*.py") if each.stem not in ("__init__", "base"))
        raise ValueError("this is a folder: name a config in it" + (f", such as {found[0]}" if found else ""))
    if not path.is_file():
        found = near(file)
        raise ValueError("there is no such file" + (f": did you mean {found}?" if found else f" in {Path.cwd()}"))
    if path.suffix != ".py":
        raise ValueError("not a config, which is a Python file with a function get_config(variant)")
    if not callable(get_config := getattr(load(path), "get_config", None)):
        raise ValueError("not a config: the file has no function get_config(variant)")
    if variant and not inspect.signature(get_config).parameters:
        raise ValueError(f"the config has no variants, {variant[0]!r} is one too many")
    with one_line(path):
        config = get_config(*variant)
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config() returns {type(config).__name__}: a config is an ml_collections.ConfigDict")
    return config


def published(name: str, package: str = "configs") -> Path | None:
    """The file of a config of the package `configs`, wherever that is installed, by its name: `subtask2/aimm_siamese`.

    None for a file that is there, and for a name that is none of these. `package` is another one that has such files.
    """
    if not re.fullmatch(r"\w+(/\w+)?", name) or Path(name).is_file() or not (found := importlib.util.find_spec(package)):
        return None
    files = [Path(folder) / f"{name}.py" for folder in found.submodule_search_locations or ()]
    return next((file for file in files if file.is_file() and file.stem not in ("__init__", "base")), None)


def load(path: Path) -> ModuleType:
    """The module of a Python file; raises ValueError as `one_line` does."""
    with one_line(path):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def one_line(path: Path) -> Generator[None]:
    """Whatever the code of a Python file raises is a ValueError that names the place in it."""
    try:
        yield
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
        inside = [frame for frame in frames if Path(frame.filename) == path.absolute()]
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error).strip() else type(error).__name__
        if isinstance(error, SyntaxError):
            raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from None
        if isinstance(error, ModuleNotFoundError) and error.name == "configs":
            raise ValueError("it needs the folder `configs` of the checkout: run the command there") from None
        if isinstance(error, ValueError) and frames[-1] not in inside:  # of a variant, for example: it says all
            raise ValueError(str(error)) from None
        place = (inside or frames)[-1]
        raise ValueError(f"{place.filename}, line {place.lineno}: {reason}") from None


def near(file: str) -> str:
    """The config that a path was meant for, by its path, what follows `configs/`, or the name alone; '' for none."""
    known: dict[str, str] = {}
    for path in [*sorted(Path("configs").rglob("*.py")), *sorted(Path(file).parent.glob("*.py"))]:
        if path.stem in ("__init__", "base"):
            continue
        inside = path.relative_to("configs") if path.is_relative_to("configs") else path
        for key in (path, inside, path.with_suffix(""), inside.with_suffix(""), path.name, path.stem):
            known.setdefault(str(key), str(path))
    return known[found] if (found := file if file in known else names.nearest(file, known)) else ""


def of_outermost(field: str) -> str:
    """'' where a member may have a field of its own, else a line that names the field of the run around it, see `Run.child`."""
    found = re.fullmatch(r"((?:member\.)*)member\.(.+)", field)
    if not found or found[2] not in ("seed", "data_dir", "data.fold", *GIVEN):
        return ""
    return f"a member has the value of the run around it: set {found[1]}{found[2]}"


def missing_field(config: Config, field: str, prefix: str = "") -> str:
    """'' where a config has a field, else a line that names the nearest one, also that of a member; `prefix` goes before it."""
    try:
        config_path.get_type(field, config)
        return ""
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        pass
    known = {name: name for name, _ in walk(config)}
    # The field as it is called in a config without members, or by the end of its name alone.
    ends = [key for key in known if key.endswith(f".{field}")]
    for key in list(known):
        known.setdefault(key.replace("member.", ""), key)
    found = min(ends, key=len) if ends else known.get(names.nearest(field, known), "")
    return f"the config has no field {field}" + (f": did you mean {prefix}{found}?" if found else "")
