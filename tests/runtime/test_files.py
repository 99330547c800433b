"""Files are whole or not there, and what a stranger can put under their names is refused in one line."""

import json
import os
import re
import subprocess
import sys

import pytest

from fingerprint_jax.runtime import files


@pytest.mark.parametrize("name", ["a.txt", "images/1/notes.md", "images/x.png"])
def test_what_is_made_anew_is_removed_with_nothing_of_somebody_else(name, tmp_path):
    ours, folder = re.compile(r"images/\d+/\d+\.png"), tmp_path / "made"
    (folder / "images" / "1").mkdir(parents=True)
    for own in ("images/1/2.png", "images/.DS_Store"):
        (folder / own).touch()
    (folder / name).write_text("mine")
    with pytest.raises(ValueError, match=f"{folder / name} is none of our files, and {folder} is made anew: move it away"):
        files.remove(folder, ours)
    assert (folder / "images/1/2.png").exists()
    (folder / name).unlink()
    files.remove(folder, ours)
    assert not folder.exists()
    files.remove(folder, ours)
    folder.symlink_to(tmp_path)
    with pytest.raises(ValueError, match="is a link"):
        files.remove(folder, ours)


def test_a_journal_goes_on_after_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert files.read_journal(path) == []
    path.write_text('["a", 1]\n["b", 2]\n["c"')
    assert files.read_journal(path) == [["a", 1], ["b", 2]]
    with path.open("a") as file:
        file.write('["c", 3]\n')
    assert files.read_journal(path) == [["a", 1], ["b", 2], ["c", 3]]
    path.write_text('["a"')
    assert files.read_journal(path) == [] and path.read_text() == ""


def test_a_lock_that_was_removed_while_it_was_waited_for_is_none(tmp_path, monkeypatch):
    path, flock = tmp_path / "lock", files.fcntl.flock

    def removed(file, how):
        path.unlink()
        flock(file, how)

    monkeypatch.setattr(files.fcntl, "flock", removed)
    with pytest.raises(ValueError, match="^another process is there$"), files.locked(path, "%s is there"):
        pytest.fail("two would hold it")


def test_a_lock_in_a_folder_with_a_percent_sign_says_who_holds_it(tmp_path):
    path = tmp_path / "50%"
    with (
        files.locked(path),
        pytest.raises(ValueError, match="^50%: process [0-9]+ on .* is there$"),
        files.locked(path, "50%: %s is there"),
    ):
        pytest.fail("two would hold it")


def test_a_lock_without_a_refusal_waits(tmp_path):
    path = tmp_path / "lock"
    imports = "from pathlib import Path; from fingerprint_jax.runtime import files"
    inside = f"{imports}\nwith files.locked(Path({str(path)!r})): print('inside')"
    with files.locked(path):
        other = subprocess.Popen([sys.executable, "-c", inside], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(8)
    assert other.communicate(timeout=60)[0] == "inside\n"


def test_a_link_is_replaced_and_never_written_through(tmp_path):
    target = tmp_path / "keys"
    for name in ("text", "lock", "log", "journal"):
        (tmp_path / name).symlink_to(target)
    target.write_text('["mine"]\n"cut')
    files.write_text(tmp_path / "text", "new")
    assert not (tmp_path / "text").is_symlink() and (tmp_path / "text").read_text() == "new\n"
    with pytest.raises(ValueError, match="lock: a link, expected a file: remove it"), files.locked(tmp_path / "lock", "%s"):
        pytest.fail("locked")
    with pytest.raises(ValueError, match="log: a link, expected a file"):
        files.appending(tmp_path / "log")
    with pytest.raises(ValueError, match="journal: a link, expected a file"):
        files.read_journal(tmp_path / "journal")  # it would cut off the end
    (tmp_path / f".text.{os.getpid()}.tmp").symlink_to(target)
    files.write_text(tmp_path / "text", "newer")
    assert target.read_text() == '["mine"]\n"cut' and (tmp_path / "text").read_text() == "newer\n"


def test_what_never_ends_or_never_comes_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, kind in (("pipe", "a pipe"), ("folder", "a folder"), ("zero", "a link")):
        with pytest.raises((ValueError, IsADirectoryError), match=f"{name}: {kind}|Is a directory"):
            files.read_bytes(tmp_path / name)
    with pytest.raises(ValueError, match="pipe: a pipe, expected a file"):
        files.appending(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(ValueError, match="large: 11 bytes, at most 10 are read"):
        files.read_bytes(tmp_path / "large", 10)
    assert files.read_bytes(tmp_path / "large", 11) == bytes(11)
    (tmp_path / "link").symlink_to("large")
    assert files.read_bytes(tmp_path / "link") == bytes(11)  # a user's data may lie elsewhere


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff{}", "not UTF-8"),
        (b"[]", "a list, expected an object"),
        (b"null", "null, expected an object"),
        (b"{}", "field 'a' is missing"),
        (b'{"a": "1", "b": {}}', "field 'a' is text, expected a number"),
        (b'{"a": true, "b": {}}', "field 'a' is true or false, expected a number"),
        (b'{"a": 1, "b": []}', "field 'b' is a list, expected an object or null"),
        (b'{"a": 1' + b"1" * 5000 + b"}", "integer"),
    ],
)
def test_json_that_is_not_ours_is_one_line(content, reason, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        files.read_json(path, {"a": int, "b": (dict, type(None))}, "make it again")
    text = str(caught.value)
    assert text.startswith(f"{path} cannot be used (") and text.endswith("): make it again") and "\n" not in text
    assert text.count(str(path)) == 1


def test_json_of_ours_is_read(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"a": 1, "b": None, "more": []}))
    assert files.read_json(tmp_path / "x.json", {"a": (int, float), "b": (dict, type(None))}, "") == {"a": 1, "b": None, "more": []}
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "none.json", {}, "")
    (tmp_path / "j").write_text('1\n{"x\n')
    with pytest.raises(ValueError, match="j, line 2: no JSON; remove the line"):
        files.read_journal(tmp_path / "j")


@pytest.mark.parametrize("path", ["/dev/null", "/dev/stdout", "/dev/a_name_that_is_not_there"])
def test_no_file_takes_the_place_of_a_device(path, monkeypatch):
    monkeypatch.setattr(files.os, "replace", lambda *_: pytest.fail("the machine would have lost a device"))
    with pytest.raises(ValueError, match=f"^{path}: a device, name a file$"), files.replacing(path):
        pytest.fail("nothing is written there")
