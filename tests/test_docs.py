"""The README and docs/: links lead somewhere, and the commands in them are commands."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from absl import flags

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
COMMAND = re.compile(
    r"^ {4,}(?:\w+=\S+ )*(?:\.venv/bin/)?python -m ((?:fingerprint_jax|launch|benchmarks)[\w.]*)(.*)$", re.MULTILINE
)


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
        for module, rest in COMMAND.findall(page.read_text().replace("\\\n", " ")):
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


def test_a_command_that_is_none_is_found():
    values = flags.FlagValues()
    importlib.import_module("fingerprint_jax.main").define_flags(values)
    with pytest.raises(flags.UnrecognizedFlagError):
        values(["main", "--config=configs/quickstart.py", "--workdir=runs/a", "--dryrun"])
