"""The gate of a pipeline: what fails, by which flag, and the file that a CI server reads."""

import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest
from absl import flags

from fingerprint_jax.audit import __main__ as main
from fingerprint_jax.audit import gate, sentences, verdict
from tests.audit.documents import HOSTILE, audit

EMPTY = {"smallest": None}


def _values(**given):
    values = flags.FlagValues()
    main.define_flags(values)
    values(["audit", "--output=out", *(f"--{name}={value}" for name, value in given.items())])
    return values


@pytest.mark.parametrize("found", verdict.EXIT_STATUS)
def test_a_verdict_fails_where_it_is_named(found):
    document = audit(found)
    for short, name in verdict.SHORT.items():
        assert set(gate.failures(document, [short], None)) == ({short} if name == found else set())
        for json in (False, True):
            values = SimpleNamespace(fail_on=[short], max_limit=None, json=json)
            assert gate.status(document, values) == (10 if name == found else 0)


def test_every_verdict_but_the_last_can_fail_a_build_by_a_status_of_its_own():
    assert {*verdict.SHORT.values(), verdict.NONE} == set(verdict.EXIT_STATUS)
    assert gate.FAILED not in verdict.EXIT_STATUS.values()


@pytest.mark.parametrize(
    ("share", "change", "said"),
    [
        (0.05, {}, ""),  # the easiest kind of documents.py is noticed at 1 in 20
        (0.04, {}, "imprints of less than 1 in 20 used patients are not noticed, 0.04 is asked for"),
        (0.5, {"kinds": [EMPTY, EMPTY]}, "none of the imprints that were tried would have been noticed"),
        (0.5, {"null": {"detected": 30, "repeats": 100, "power": 0.3, "interval": [0.21, 0.4]}}, "is not to be trusted: Without"),
        (0.5, {"reason": "20 are too few"}, "the detection limit is not known: 20 are too few"),
    ],
)
def test_a_limit_that_is_too_large_or_not_known_fails(share, change, said):
    document = audit()
    document["limit"] |= change
    failed = gate.failures(document, ["copies"], share)
    assert set(failed) == ({"limit"} if said else set()) and said in failed.get("limit", "")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fail_on": "copy"}, "--fail_on='copy' is unknown: did you mean 'copies'"),
        ({"max_limit": 0.2, "repeats": 0}, "--max_limit needs the detection limit, which --repeats=0 leaves out"),
        ({"max_limit": 0.01}, "--max_limit=0.01: nothing passes this; use at least 0.02"),
        ({"junit": "junit.xml"}, "--junit goes with --fail_on or --max_limit"),
        ({"fail_on": ""}, "--fail_on is empty: name verdicts, copies"),
        ({"junit": "/", "fail_on": "copies"}, "--junit=/: a folder, name a file"),
    ],
)
def test_a_gate_that_cannot_be_is_one_line(given, said):
    with pytest.raises(ValueError, match=said):
        gate.check(_values(**given))


def test_a_gate_does_not_go_with_a_recipe(tmp_path):
    (tmp_path / "config.py").write_text("from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n")
    with pytest.raises(ValueError, match="^--fail_on does not go with --recipe"):
        main._check_given(_values(recipe=tmp_path / "config.py", real=tmp_path, fail_on="copies"))


def test_the_file_of_a_ci_server_is_whole_and_says_what_the_gate_says(tmp_path, monkeypatch):
    document = audit("copies found")
    document["verdict"]["reasons"] = [f"{HOSTILE}\x1b[31m\ufffe"]
    document["verdict"]["sentence"] = sentences.verdict_words(document)
    gate.write_junit(tmp_path / "a" / "junit.xml", document, ["copies", "evidence"], 0.04)
    (suite,) = ET.parse(tmp_path / "a" / "junit.xml").getroot()
    cases = {case.get("name"): [part.tag for part in case] for case in suite.iter("testcase")}
    skipped = dict.fromkeys(("content", "wrong_direction", "cannot_tell"), ["skipped"])
    assert cases == {"copies": ["failure"], "evidence": [], "limit": ["failure"]} | skipped
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped", "time")] == ["6", "2", "0", "3", "812.000"]
    assert suite.find("testcase/failure").get("message") == f"copies found; {HOSTILE}\\x1b[31m\\ufffe"
    assert sentences.FIXED in suite.find("system-out").text
    before = (tmp_path / "a" / "junit.xml").read_bytes()
    monkeypatch.setattr(gate.files.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        gate.write_junit(tmp_path / "a" / "junit.xml", audit(), ["copies"], None)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["junit.xml"]
    assert (tmp_path / "a" / "junit.xml").read_bytes() == before
