"""locks/ has one version of everything that pyproject.toml asks for, with its hashes, on every Python."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = ("3.11", "3.12", "3.13")
LINE = re.compile(r"--python-version=(\S+)((?: --extra=\w+)+) .*--output-file=locks/(\w+)\.txt$", re.MULTILINE)
# {name: (oldest Python, extras)}, as `make lock` makes them.
FOUND = LINE.findall((ROOT / "Makefile").read_text())
LOCKS = {name: (oldest, re.findall(r"--extra=(\w+)", extras)) for oldest, extras, name in FOUND}
ON = [(name, python) for name, (oldest, _) in LOCKS.items() for python in PYTHONS if python >= oldest]


def lines(name):
    """Each requirement of a lock, with its hashes."""
    text = (ROOT / "locks" / f"{name}.txt").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]


def on(requirements, python):
    """Those that hold on this system with a Python: {name: [requirement]}."""
    found = {}
    for each in map(Requirement, requirements):
        if not each.marker or each.marker.evaluate({"python_version": python, "python_full_version": f"{python}.9", "extra": ""}):
            found.setdefault(canonicalize_name(each.name), []).append(each)
    return found


def locked(name, python):
    """{package: version} of a lock."""
    found = on((line.partition(" --hash=")[0] for line in lines(name)), python)
    assert all(len(each) == 1 for each in found.values()), "two versions at once"
    return {package: str(each.specifier).removeprefix("==") for package, (each,) in found.items()}


def asked(extras):
    """What pyproject.toml asks for: run time, extras, and what builds the package."""
    run_time = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    optional = PROJECT["project"]["optional-dependencies"]
    return [*filter(None, run_time), *(each for extra in extras for each in optional[extra]), *PROJECT["build-system"]["requires"]]


def behind(requirements, versions, python):
    """The requirements that a lock does not meet."""
    return [
        f"{each}: {versions.get(package, 'nothing')} is locked"
        for package, all_of_it in on(requirements, python).items()
        for each in all_of_it
        if package not in versions or not each.specifier.contains(versions[package], prereleases=True)
    ]


def test_make_lock_makes_all_of_them():
    assert {"dev", "cpu", "cuda"} <= set(LOCKS) == {path.stem for path in (ROOT / "locks").iterdir()}


@pytest.mark.parametrize(("name", "python"), ON)
def test_the_lock_is_not_older_than_what_is_asked_for(name, python):
    found = behind(asked(LOCKS[name][1]), locked(name, python), python)
    assert not found, f"locks/{name}.txt, Python {python}: {'; '.join(found)}. It is made anew by: make lock"


@pytest.mark.parametrize(("name", "python"), ON)
def test_what_is_trained_with_is_what_was_tested(name, python):
    dev, other = locked("dev", python), locked(name, python)
    assert [package for package in other if dev.get(package, other[package]) != other[package]] == []


@pytest.mark.parametrize(("name", "plugin"), [("cuda", "jax-cuda13-plugin"), ("tpu", "libtpu")])
def test_what_an_extra_of_jax_brings_is_locked_too(name, plugin):
    assert plugin in locked(name, "3.13") and plugin not in locked("cpu", "3.13")


@pytest.mark.parametrize("name", LOCKS)
def test_every_file_is_known_by_its_hash_and_no_place_is_named(name):
    for line in lines(name):
        requirement, *hashes = re.split(r"\s+--hash=", line.strip())
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ; [^@]+)?", requirement), line
        assert hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", each) for each in hashes), requirement
    assert not re.search(r"://|index|find-links|trusted", (ROOT / "locks" / f"{name}.txt").read_text())


@pytest.mark.parametrize(
    ("requirement", "says"),
    [
        ("numpy>=999", r"^numpy>=999: [\d.]+ is locked$"),
        ("no_such_package", "^no_such_package: nothing is locked$"),
        ("numpy>=999; python_version < '3.11'", ""),
        ("NumPy", ""),
    ],
)
def test_a_lock_that_is_behind_is_found(requirement, says):
    found = behind([requirement], locked("dev", "3.13"), "3.13")
    assert len(found) == bool(says) and all(re.search(says, each) for each in found)
