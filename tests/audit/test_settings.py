"""Flags from a file, and flags to a file."""

import shlex

import pytest
import yaml
from absl import flags

from fingerprint_jax.audit import __main__ as main
from fingerprint_jax.audit import settings


def parsed(*arguments):
    values = main._own_flags()
    values(settings.expanded(["audit", *arguments], main._own_flags()))
    return values


def test_a_file_stands_for_flags_and_the_command_line_wins(tmp_path):
    path = tmp_path / "audit.yaml"
    path.write_text("used: a, b\nseed: 3\nredact: true\nfail_on: [copies, evidence]\nsteps: [10, 20]\nmax_limit: 1\noutput: o\n")
    values = parsed("--used", "c", "--noredact", f"--config={path}", "--seed=4")
    assert (values.used, values.seed, values.redact, values.output) == ("c", 4, False, "o")
    assert values.fail_on == ["copies", "evidence"] and values.steps == ["10", "20"] and values.max_limit == 1
    values = parsed(f"--config={path}")
    assert (values.used, values.seed, values.redact) == ("a, b", 3, True)
    assert settings.expanded(["audit", "--seed=1"], main._own_flags()) == ["audit", "--seed=1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds: 1", "flag='seeds' is unknown: did you mean 'seed'"),
        ("config: other.yaml", "flag='config' is unknown"),
        ("plan_only: true", "plan_only belongs on the command line"),
        ("1: 2", "flag=1 is unknown"),
        ("seed: '1'", "seed is '1', expected a whole number"),
        ("seed: true", "seed is True, expected a whole number"),
        ("seed: -1", "seed: -1 is not a"),
        ("redact: 1", "redact is 1, expected true or false"),
        ("max_limit: a", "max_limit is 'a', expected a number such as 0.5"),
        ("max_limit: 2.0", "max_limit: 2.0 is not"),
        ("fail_on: [[copies]]", "expected a list of names or numbers"),
        ("used: [a]", r"used is \['a'\], expected text"),
        ("groups:", "groups is None, expected text"),
        ("used: !!python/object/apply:os.system [ls]", "line 1: no YAML"),
        ("used: [", "line 1: no YAML"),
        ("- a", "expected flags and their values"),
        ("", "expected flags and their values"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line_that_names_it(text, said, tmp_path):
    path = tmp_path / "audit.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        parsed(f"--config={path}", "--output=o")
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_the_command_says_what_is_wrong_in_a_line(tmp_path, monkeypatch):
    (tmp_path / "audit.yaml").write_text("seed: one")
    monkeypatch.setattr("sys.argv", ["audit", f"--config={tmp_path}/audit.yaml"])
    with pytest.raises(SystemExit, match=f"^audit: error: {tmp_path}/audit.yaml: seed is 'one', expected a whole number$"):
        main.command()


def test_fields_of_a_config_go_by_their_flag(tmp_path):
    (tmp_path / "audit.yaml").write_text("recipe: mine.py\nrecipe.num_steps: 5\n")
    argv = settings.expanded(["audit", f"--config={tmp_path}/audit.yaml", "--count=20"], main._own_flags())
    assert argv == ["audit", "--recipe=mine.py", "--recipe.num_steps=5", f"--config={tmp_path}/audit.yaml", "--count=20"]


def test_a_file_that_is_not_there_or_no_file_is_named(tmp_path):
    with pytest.raises(OSError, match="none.yaml"):
        parsed(f"--config={tmp_path}/none.yaml")
    with pytest.raises(ValueError, match=f"^{tmp_path}: a folder, expected a file"):
        parsed(f"--config={tmp_path}")
    with pytest.raises(flags.Error, match="config"):
        parsed("--config")


def test_what_is_written_is_read_as_the_same_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["--used=a 'b'\u00e4\udc80", "--output=out", "--redact", "--fail_on=copies,evidence", "--window=510,1020"]
    given += ["--max_limit=0.2", "--max_rejected=0", "--repeats=0"]
    values, known = parsed(*given, "--json", "--release=r", "--junit=j"), main._own_flags()
    found = settings.given(values, known)
    assert found == {
        **{
            "used": "a 'b'\u00e4\udc80",
            "output": "out",
            "image_size": 0,
            "window": "510,1020",
            "seed": 0,
            "patient_score": "mean",
            "repeats": 0,
        },
        **{"redact": True, "fail_on": ["copies", "evidence"], "max_limit": 0.2, "max_rejected": 0.0},
    }
    settings.write(tmp_path, settings.absolute(found, known))
    again = settings.given(parsed(f"--config={tmp_path / 'audit.yaml'}"), known)
    assert again == found | {"used": f"{tmp_path}/{found['used']}", "output": f"{tmp_path}/out"}
    by_command = settings.given(parsed(*shlex.split(settings.command(found))[3:]), known)
    assert by_command == found
    bare = settings.without_paths(found, known)
    assert bare == {name: value for name, value in found.items() if name not in ("used", "output")}
    settings.write(tmp_path, bare)
    assert yaml.safe_load((tmp_path / "audit.yaml").read_text()) == bare


def test_of_a_network_that_joins_a_file_without_folders_has_the_name(tmp_path):
    found = {"likelihood_ratio": "/home/somebody/mine.py:smoke", "likelihood_ratio.member.backbone.weights": "/home/w"}
    assert settings.without_paths(found, main._own_flags()) == {"likelihood_ratio": "mine.py:smoke"}
