"""The README and docs/: links lead somewhere, and the commands in them are commands."""

import importlib
import importlib.util
import pydoc
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from absl import flags

from configs import base
from fingerprint_jax.runs.config import flat_config

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
COMMAND = re.compile(
    r"^ {4,}(?:\w+=\S+ )*(?:\.venv/bin/)?python -m ((?:fingerprint_jax|launch|benchmarks)[\w.]*)(.*)$", re.MULTILINE
)
SCRIPT = re.compile(r"^ {4,}[^#\n]*?\b(fingerprint-[a-z]+) (--.*)$", re.MULTILINE)
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def anchors(page):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for found in LINK.findall(page.read_text()):
        link = found[0] or found[1]
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def commands():
    for page in PAGES:
        # A backslash at the end of a line goes on in the next.
        text = page.read_text().replace("\\\n", " ")
        scripts = [(SCRIPTS[name].partition(":")[0], rest) for name, rest in SCRIPT.findall(text)]
        for module, rest in COMMAND.findall(text) + scripts:
            if not re.search(r"\.\.\.|…|\[--|mypkg|\$i", rest):  # parts are left out on purpose, or made by the page
                yield pytest.param(module, rest, id=f"{page.stem}: {module}{rest[:60]}")


@pytest.mark.parametrize(("module", "rest"), commands())
def test_commands_parse(module, rest, monkeypatch):
    """All flags of a command are there, and its config has the fields that it changes."""
    monkeypatch.chdir(ROOT)
    try:
        binary = importlib.import_module(module)
        binary.define_flags  # noqa: B018
    except AttributeError:
        binary = importlib.import_module(f"{module}.__main__")
    values = flags.FlagValues()
    binary.define_flags(values)
    argv = shlex.split(rest.partition(" > ")[0], comments=True)
    monkeypatch.setattr("sys.argv", [module, *argv])  # where the fields of a config are looked for
    assert values([module, *argv]) == [module]


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_fields_has_every_field_of_the_defaults(hooks):
    page = hooks.fields()
    member = base.gradient("subtask1")
    ensembles = base.ensemble(member), base.pairs(member), base.pseudo_label(member), base.classical(member)
    for config in (member, base.generator(""), *ensembles):
        own = {name for name in flat_config(config) if not name.startswith(("member.", "data.streams."))}
        assert own and not [name for name in sorted(own) if f"| `{name}` |" not in page]


def test_the_page_of_commands_has_every_flag(hooks):
    page = hooks.commands()
    for module in ("pack", "main", "evaluate", "generate", "audit.__main__"):
        values = flags.FlagValues()
        importlib.import_module(f"fingerprint_jax.{module}").define_flags(values)
        part = page.partition(f"`python -m fingerprint_jax.{module.removesuffix('.__main__')}`")[2].partition("\n## ")[0]
        assert set(re.findall(r"^\| `--(\w+)`", part, re.MULTILINE)) == set(values)


def test_every_page_has_its_place_on_the_site():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    assert not [page.name for page in (ROOT / "docs").glob("*.md") if f": {page.name}\n" not in nav]


def test_what_the_page_of_python_names_is_there_and_says_what_it_is():
    named = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "python.md").read_text(), re.MULTILINE)
    assert named and not [name for name in named if not pydoc.locate(name).__doc__]


def test_a_command_that_is_none_is_found():
    values = flags.FlagValues()
    importlib.import_module("fingerprint_jax.main").define_flags(values)
    with pytest.raises(flags.UnrecognizedFlagError):
        values(["main", "--config=configs/quickstart.py", "--workdir=runs/a", "--dryrun"])
