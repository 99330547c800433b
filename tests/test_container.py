"""The Dockerfile names what is there: files, locks, a Python, a command."""

import json
import re
import tomllib

import pytest
from packaging.specifiers import SpecifierSet

from tests.conftest import ROOT
from tests.test_locks import LOCKS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
IMAGES = {"cpu", "cuda", "tpu"}


def instructions():
    """(INSTRUCTION, its arguments), in the order of the file."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line]


def arguments(name):
    return [rest for found, rest in instructions() if found == name]


def copied(device):
    """[(source, target)] of what goes into the image of a device."""
    out = []
    for rest in arguments("COPY"):
        *sources, target = rest.replace("${DEVICE}", device).split()
        out += [(source, target) for source in sources]
    return out


def test_every_instruction_is_one_that_is_looked_at():
    assert {name for name, _ in instructions()} == {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "CMD"}


def test_its_python_is_one_release_that_the_project_and_all_locks_take():
    base, device = arguments("ARG")
    assert arguments("FROM") == ["${BASE}"] and device == "DEVICE=cpu"
    python = re.fullmatch(r"BASE=python:(\d+\.\d+\.\d+)-slim-[a-z]+", base)[1]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert all(SpecifierSet(f">={LOCKS[name][0]}").contains(python) for name in IMAGES)


@pytest.mark.parametrize("device", sorted(IMAGES))
def test_what_is_copied_is_there_and_all_that_the_package_is_made_of(device):
    sources = [source for source, _ in copied(device)]
    assert all((ROOT / source).exists() for source in sources)
    needed = {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], *SETUPTOOLS["dynamic"]["dependencies"]["file"]}
    packages = {pattern.rstrip("*") for pattern in SETUPTOOLS["packages"]["find"]["include"]}
    assert set(sources) == needed | packages | {f"locks/{device}.txt"}
    # A folder is copied by its content, so that its target has its name.
    assert all(target == f"{source}/" for source, target in copied(device) if (ROOT / source).is_dir())


def test_nothing_else_reaches_the_build():
    everything, *rest = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert everything == "*" and rest.pop() == "**/__pycache__"
    assert {line.removeprefix("!") for line in rest} == {source.partition("/")[0] for source, _ in copied("cpu")}
    assert all(line.startswith("!") for line in rest)


def test_all_is_installed_by_hashes_but_the_package_itself():
    installs = re.findall(r"pip install ([^&]+)", " && ".join(arguments("RUN")))
    *hashed, own = [set(each.split()) for each in installs]
    assert hashed and all("--require-hashes" in each for each in hashed)
    assert {"--no-deps", "--no-build-isolation"} <= own  # nothing is fetched for it


def test_it_runs_a_command_of_the_package_as_a_user_without_rights():
    assert json.loads(arguments("CMD")[0])[0] in PROJECT["scripts"]
    (user,) = arguments("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)  # a number: Kubernetes' runAsNonRoot looks at nothing else
    assert [name for name, _ in instructions()][-2:] == ["USER", "CMD"]


def test_the_images_that_the_docs_build_are_those_of_the_locks():
    text = "".join(page.read_text() for page in [ROOT / "Dockerfile", *(ROOT / "docs").glob("*.md")])
    assert set(re.findall(r"--build-arg=DEVICE=(\w+)", text)) <= IMAGES <= set(LOCKS)
