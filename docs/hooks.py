"""Pages of the site that are made of the code: the fields of configs and the flags of commands."""

import importlib
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from absl import flags

ROOT = Path(__file__).parents[1]
FIELD = re.compile(r"^    c\.([\w.]+) = (.+?)  # (.+)$", re.MULTILINE)
SECTION = re.compile(r'^def (\w+)\(.*?\) -> Config:\n    """(.+?)"""$(.+?)^    return ', re.MULTILINE | re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages, see https://www.mkdocs.org/user-guide/configuration/#hooks."""
    from mkdocs.structure.files import File

    for name, content in (("fields", fields()), ("commands", commands())):
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def fields() -> str:
    """A table of the fields that each kind of config has, with their defaults, out of the comments in configs/base.py."""
    lines = ["# Fields of configs", "", "Change a field on the command line: `--config.optimizer.learning_rate=1e-3`.", ""]
    for name, about, body in SECTION.findall((ROOT / "configs" / "base.py").read_text()):
        if found := FIELD.findall(body):
            rows = [f"| `{field}` | `{_cell(value)}` | {_cell(text)} |" for field, value, text in map(_named, found)]
            lines += [f"## {name}", "", " ".join(about.split()), "", "| field | default | what it is |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _named(found: tuple[str, str, str]) -> tuple[str, str, str]:
    """A section that has its name alone is the field `name` of it."""
    field, value, text = found
    if name := re.fullmatch(r'ConfigDict\(\{"name": ([^,}]+).*\}\)', value):
        return f"{field}.name", name[1], text
    return field, re.sub(r"config_dict\.placeholder\((\w+)\)", r"None, else \1", value), text


def commands() -> str:
    """A table of the flags of each command."""
    scripts: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    lines = ["# Commands", "", "`--help` of each command shows its flags too, `--version` alone prints the version.", ""]
    sys.path.insert(0, str(ROOT))
    for script, place in scripts.items():
        module = place.partition(":")[0]
        values = flags.FlagValues()
        importlib.import_module(module).define_flags(values)
        lines += [f"## {script}", "", f"`python -m {module.removesuffix('.__main__')}`", ""]
        lines += ["| flag | default | what it does |", "|---|---|---|"]
        for name in sorted(set(values)):
            flag = values[name]
            default = "" if flag.default in (None, "", []) else f"`{_cell(str(flag.default))}`"
            lines.append(f"| `--{name}` | {default} | {_cell(flag.help or '')} |")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
