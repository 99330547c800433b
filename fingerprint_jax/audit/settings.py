"""The flags of an audit as a file: --config=audit.yaml in the place of flags, and what an audit writes so that it can be repeated.

A field is the name of a flag. What the command line says wins over the file.
"""

import shlex
from pathlib import Path
from typing import Any

import yaml
from absl import flags
from ml_collections import config_flags

from fingerprint_jax.audit import network
from fingerprint_jax.runtime import files, names, paths

FILE = "audit.yaml"
NETWORKS = tuple(network.ATTACKS)  # whose flags name a config, of which --likelihood_ratio.FIELD changes a field
OF_CONFIGS = *NETWORKS, "recipe"
# Written even where nobody gave them: another version may have other defaults.
ALWAYS = "image_size", "seed", "repeats", "patient_score"
# Nothing of the audit is other by these; and what is made again from the file replaces no report of the audit that wrote it.
LEFT_OUT = "config", "json", "plan_only", "release", "junit"
HEAD = "# As --config this goes on with the audit in its --output; with another --output on the command line it is made again.\n"
OF_RELEASE = "# As --config, with the folders of the images and --output on the command line, this makes the audit again.\n"
EXPECTED: dict[str, tuple[tuple[type, ...], str]] = {  # of a flag's type; of all others text
    "bool": ((bool,), "true or false"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number such as 0.5"),
    "comma separated list of strings": ((str, list), "a list of names or numbers"),
}

Settings = dict[str, Any]  # {flag: bool, int, float, text or a list of text}


def define_flags(values: flags.FlagValues) -> None:
    """The flag of the file."""
    paths.define("config", "", "YAML file with flags by their names, as an audit writes it: audit.yaml.", values)


def expanded(argv: list[str], known: flags.FlagValues) -> list[str]:
    """The command line with the flags of its --config before its own, of which the last one counts.

    `known` has the flags of an audit. Raises ValueError that names the file and what is wrong in it, OSError where it cannot be
    read, `flags.Error` for a --config without a value.
    """
    values = flags.FlagValues()
    define_flags(values)
    values.set_gnu_getopt(True)  # a value that stands apart from its flag ends nothing
    values(argv, known_only=True)
    return [argv[0], *(arguments(Path(values.config), known) if values.config else ()), *argv[1:]]


def arguments(path: Path, known: flags.FlagValues) -> list[str]:
    """The flags of a file as a command line has them; raises as `expanded` does."""
    try:
        found = yaml.safe_load(files.read_text(path))
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{place}: no YAML ({error.problem})") from None
    except (yaml.YAMLError, RecursionError):
        raise ValueError(f"{path}: no YAML, or nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected flags and their values, such as seed: 1")
    return [f"--{name}={_text(path, name, value, known)}" for name, value in found.items()]


def _text(path: Path, name: object, value: object, known: flags.FlagValues) -> str:
    """The value of a flag as the command line has it."""
    if isinstance(name, str) and name.partition(".")[0] in OF_CONFIGS and "." in name:
        return str(value)  # a field of a config, which checks it
    if name == "plan_only":  # left in a file, it would end every pipeline before its gate
        raise ValueError(f"{path}: plan_only belongs on the command line, where it is seen")
    names.check(f"{path}: flag", name, [each for each in known if each != "config"])
    flag = known[str(name)]
    types, expected = EXPECTED.get(flag.flag_type(), ((str,), "text"))
    parts = value if isinstance(value, list) else [value]
    of_list = isinstance(value, list) and all(isinstance(part, (str, int)) and not isinstance(part, bool) for part in parts)
    if not isinstance(value, types) or isinstance(value, bool) != (bool in types) or isinstance(value, list) != of_list:
        raise ValueError(names.printable(f"{path}: {name} is {value!r:.80}, expected {expected}"))
    text = str(value).lower() if isinstance(value, bool) else ",".join(map(str, parts))
    if name not in OF_CONFIGS:  # that file is read once, by its flag
        try:
            flag.parser.parse(text)
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from None
    return text


def given(values: flags.FlagValues, known: flags.FlagValues) -> Settings:
    """The flags of a plain audit that had an effect, as they were given."""
    found: Settings = {}
    for name in values:
        flag = values[name]
        if name.partition(".")[0] in NETWORKS and "." in name and not flag.using_default_value:
            found[name] = str(flag.value)
        if name not in known or name in LEFT_OUT or (flag.using_default_value and name not in ALWAYS):
            continue
        value = config_flags.get_config_filename(flag) if name in NETWORKS and flag.value is not None else flag.value
        if name in ALWAYS or (value not in (None, "", []) and value is not False):
            found[name] = value
    return found


def command(found: Settings) -> str:
    """The command line of these flags."""
    words = {name: ",".join(value) if isinstance(value, list) else value for name, value in found.items()}
    return shlex.join(["python", "-m", "fingerprint_jax.audit", *(f"--{name}={value}" for name, value in words.items())])


def write(folder: Path, found: Settings) -> None:
    """Writes `<folder>/audit.yaml`, whole or not at all."""
    text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=2**20)
    files.write_text(folder / FILE, (HEAD if "output" in found else OF_RELEASE) + text.rstrip("\n"))


def absolute(found: Settings, known: flags.FlagValues) -> Settings:
    """With all paths from the root, so that the file works from any folder."""
    return {name: str(Path(value).absolute()) if _is_path(name, known) else value for name, value in found.items()}


def without_paths(found: Settings, known: flags.FlagValues) -> Settings:
    """Without the flags that are paths, and of that of a config the name of the file alone."""
    kept = {name: value for name, value in found.items() if not _is_path(name, known)}
    named = {name: Path(value).name if name in OF_CONFIGS else value for name, value in kept.items()}
    return {name: value for name, value in named.items() if "/" not in str(value)}


def _is_path(name: str, known: flags.FlagValues) -> bool:
    return name in known and known[name].flag_type() == "path"
