"""Lists the runs of a sweep: every override is checked against its config before anything is trained.

python -m launch.sweep --config=configs/quickstart.py --data_dir=DATA --output=sweeps/lr \
    --set optimizer.learning_rate=1e-3,1e-4 --set seed=0,1,2
python -m launch.sweep --config=configs/subtask2/aimm_siamese.py --data_dir=DATA --output=sweeps/contrastive \
    --file=launch/ablations/contrastive.py
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

from absl import flags

from fingerprint_jax import Config
from fingerprint_jax.runs import checkpoint, config_file
from fingerprint_jax.runs.config import config_hash, flat_config
from fingerprint_jax.runtime import cli, files, paths

Overrides = dict[str, Any]  # {field: value}; the field `config` chooses the file of a row
LONGEST_NAME = 100


def values(field: str, *options: Any) -> list[Overrides]:
    """One field, each of its values."""
    return [{field: option} for option in options]


def product(*sweeps: list[Overrides]) -> list[Overrides]:
    """Every combination, the last sweep varying fastest; what a later sweep says of a field wins."""
    return [_merge(parts) for parts in itertools.product(*sweeps)]


def zip_(*sweeps: list[Overrides]) -> list[Overrides]:
    """First with first, second with second; raises ValueError where the lengths differ."""
    if len({len(sweep) for sweep in sweeps}) > 1:
        raise ValueError(f"sweeps of {[len(sweep) for sweep in sweeps]} rows cannot be zipped: they need equally many")
    return [_merge(parts) for parts in zip(*sweeps, strict=True)]


def chain(*sweeps: list[Overrides]) -> list[Overrides]:
    """One after the other."""
    return list(itertools.chain(*sweeps))


def _merge(parts: tuple[Overrides, ...]) -> Overrides:
    return {field: value for part in parts for field, value in part.items()}


@dataclasses.dataclass(frozen=True)
class Row:
    """One run of a sweep: its directory is `<sweep>/<name>`."""

    name: str
    config: str  # FILE or FILE:variant
    overrides: Overrides  # without `config`; JSON types
    hash: str = ""  # `config_hash` of all its fields; older sweeps have none

    @property
    def group(self) -> str:
        """The name without the seed: rows of one group are repetitions of each other."""
        return name(self.config, {field: value for field, value in self.overrides.items() if field != "seed"})

    @property
    def flags(self) -> list[str]:
        """The command line of `fingerprint_jax.main`, without --workdir."""
        return [f"--config={self.config}", *(f"--config.{field}={value}" for field, value in self.overrides.items())]


def name(config: str, overrides: Overrides) -> str:
    """A directory name that can be read: letters, digits and `._+-`; what was cut or replaced leaves a digest."""
    file, _, variant = config.partition(":")
    parts = [part for part in Path(file).with_suffix("").parts[-2:] if part != "configs"]
    fields = [f"{field}-{value}" for field, value in overrides.items()]
    whole = "_".join([".".join([*parts, variant] if variant else parts), *fields])
    text = re.sub(r"[^A-Za-z0-9._+-]+", "-", whole).lstrip(".-")
    if text == whole and len(text) <= LONGEST_NAME:
        return text
    return f"{text[: LONGEST_NAME - 9]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def resolve(config: str, overrides: Overrides) -> Config:
    """The config of a row as `fingerprint_jax.main` would see it.

    Raises ValueError for a field that the config has not, or a value that is not of its type.
    """
    try:
        plain = _load([f"--config={config}"])
    except flags.Error as error:
        raise ValueError(str(error)) from None
    known = flat_config(plain)
    for field, value in overrides.items():
        if field not in known:
            text = config_file.missing_field(plain, field) or f"{field} is no field but a group of them"
            raise ValueError(f"--config={config}: {text}")
        if text := config_file.of_outermost(field):
            raise ValueError(f"{field}={value!r}: {text}")
        expected = f"{field}={value!r}: {config} has {known[field]!r} there, which is {type(known[field]).__name__}"
        try:
            typed = flat_config(_load([f"--config={config}", f"--config.{field}={value}"]))[field]
        except flags.Error:
            raise ValueError(expected) from None
        if not isinstance(value, str) and typed != (list(value) if isinstance(value, tuple) else value):
            raise ValueError(expected)
    return _load([f"--config={config}", *(f"--config.{field}={value}" for field, value in overrides.items())])


def _load(arguments: list[str]) -> Config:
    found = flags.FlagValues()
    config_file.define_flag("config", "", found, ["sweep", *arguments])
    found(["sweep", *arguments])
    return found.config


def rows(config: str, sweep: list[Overrides]) -> list[Row]:
    """Checked rows of overrides; raises ValueError as `resolve` does, and where two rows are the same run."""
    out: list[Row] = []
    seen: dict[str, str] = {}
    for overrides in sweep:
        file = str(overrides.get("config", config) or "")
        if not file:
            raise ValueError("no config: give --config, or the field `config` in every row")
        fields = {field: value for field, value in overrides.items() if field != "config"}
        whole = resolve(file, fields)
        resolved = flat_config(whole)
        typed = json.loads(json.dumps({field: resolved[field] for field in fields}))  # as `read` has them
        row = Row(name(file, typed), file, typed, config_hash(whole))
        for key in (row.name, json.dumps(resolved, sort_keys=True)):
            if key in seen:
                raise ValueError(f"rows {seen[key]} and {row.name} are the same run: each may stand once")
            seen[key] = row.name
        out.append(row)
    if not out:
        raise ValueError("the sweep has no rows")
    return out


def changed(row: Row) -> str:
    """Why a row is no longer what it was when the sweep was written, by what its config file says now; '' where it is."""
    try:
        if row.hash in ("", config_hash(resolve(row.config, row.overrides))):
            return ""
    except ValueError as error:
        return str(error)
    return f"{row.config} is another config than when the sweep was written: write the sweep anew, in another --output"


def write(output: str | Path, data_dir: str, found: list[Row]) -> int:
    """Writes `<output>/sweep.json`, and returns how many of its rows are new.

    Raises ValueError where a sweep that lies there has rows that are not among the new ones, or rows that were begun with
    another `data_dir` or config, or where the runs could keep no checkpoints, see `checkpoint.check_place`.
    """
    checkpoint.check_place(Path(output))
    path = Path(output) / "sweep.json"
    known, rows_before = read(output) if path.exists() else (data_dir, [])
    before = [row.name for row in rows_before]
    if lost := sorted(set(before) - {row.name for row in found}):
        raise ValueError(
            f"{path} has {len(lost)} rows that the new sweep lacks (first: {lost[0]}): add rows only, or use another --output"
        )
    of_sweep = [row.name for row in rows_before if "data_dir" not in row.overrides]
    begun = [name for name in of_sweep if (path.parent / name / "config.json").exists()]
    if begun and os.path.realpath(known) != os.path.realpath(data_dir):
        raise ValueError(
            f"--data_dir={data_dir!r}: {len(begun)} rows of {path} were begun with {known!r} (first: {begun[0]}): give that, or"
            " another --output"
        )
    now = {row.name: row.hash for row in found}
    for row in rows_before:
        if row.hash not in ("", now[row.name]) and (path.parent / row.name / "config.json").exists():
            raise ValueError(
                f"row {row.name} of {path} was begun with another config than {row.config} is now: use another --output"
            )
    document = {"schema": 1, "data_dir": data_dir, "rows": [dataclasses.asdict(row) for row in found]}
    files.write_text(path, json.dumps(document, indent=1))
    return len(found) - len(before)


def read(output: str | Path) -> tuple[str, list[Row]]:
    """Data directory and rows of `<output>/sweep.json`; raises ValueError that names the file where it is not one."""
    path = Path(output) / "sweep.json"
    try:
        document = files.read_json(path, {"data_dir": str, "rows": list}, "python -m launch.sweep writes one")
        found = [Row(**row) for row in document["rows"]]
        wrong = [row.name for row in found if row.name != name(row.config, row.overrides)]
        if wrong:
            raise ValueError(f"row {wrong[0]!r} is not named after its overrides")
        if strange := [row.name for row in found if type(row.overrides.get("seed", 0)) is not int]:
            raise ValueError(f"the seed of row {strange[0]!r} is no whole number")
        if twice := [name for name, count in collections.Counter(row.name for row in found).items() if count > 1]:
            raise ValueError(f"row {twice[0]!r} stands there twice")
        return document["data_dir"], found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a sweep ({error}); python -m launch.sweep writes one") from None


def parse(text: str) -> list[Overrides]:
    """`field=v1,v2` -> one row a value; commas within brackets or quotes do not part values."""
    field, equals, options = text.partition("=")
    if not equals or not field or not options:
        raise ValueError(f"{text!r}: expected field=value,value")
    parts = re.findall(r"""(?:\([^()]*(?:\([^()]*\)[^()]*)*\)|"[^"]*"|'[^']*'|[^,])+""", options)
    return values(field, *(part.strip("\"'") for part in parts))


def load_file(path: str, name: str = "sweep") -> list:
    """What the function `name` of a Python file returns, of one of this package by its name: `tables/subtask1`."""
    file = config_file.published(path, "launch") or Path(path)
    if file.suffix != ".py" or not file.is_file():
        raise ValueError(f"--file={path}: expected a Python file")
    try:
        module = config_file.load(file)
        if not hasattr(module, name):
            raise ValueError(f"it has no function {name}()")
        with config_file.one_line(file):
            return getattr(module, name)()
    except ValueError as error:
        raise ValueError(f"--file={path}: {error}") from None


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    paths.define("config", None, "The experiment; FILE:smoke shrinks it to seconds.", flag_values=values)
    paths.define("data_dir", "", "Where `pack` wrote the data set.", flag_values=values)
    paths.define("output", None, "The directory of the sweep.", required=True, flag_values=values)
    flags.DEFINE_multi_string("set", [], "field=v1,v2,...; several are combined each with each.", flag_values=values)
    flags.DEFINE_multi_string("zip", [], "field=v1,v2,...; several go first with first.", flag_values=values)
    paths.define("file", None, "A Python file whose sweep() returns the overrides of each row.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """One sweep.json; --file, --zip and --set are combined each with each."""
    parts = [load_file(values.file)] if values.file else []
    if values.zip:
        parts.append(zip_(*map(parse, values.zip)))
    found = rows(values.config, product(*parts, *map(parse, values.set)))
    # Rows are run from other folders too, where a relative path may be that of other data.
    added = write(values.output, values.data_dir and os.path.abspath(values.data_dir), found)
    for row in found:
        print(row.name)
    print(f"{len(found)} rows, {added} of them new: python -m launch.local --sweep={values.output}")


def command() -> None:
    """The console script."""
    cli.run("sweep", define_flags, main)


if __name__ == "__main__":
    command()
