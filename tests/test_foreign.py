"""Data sets and runs of strangers, and of the unlucky: one line that names the file, and nothing of ours is lost."""

import contextlib
import csv
import hashlib
import json
import os
import re
import shutil

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from ml_collections import ConfigDict
from tensorflow_datasets.proto import tf_example_pb2

from configs import base
from fingerprint_jax import evaluate, methods
from fingerprint_jax import main as binary
from fingerprint_jax.data import builder, packing, phantom, tables
from fingerprint_jax.data.source import Source, open_source
from fingerprint_jax.evaluation import score
from fingerprint_jax.runs import checkpoint
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import files
from fingerprint_jax.training import loop
from tests.conftest import load_config
from tests.foreign import DATA, fit, reseal, tree
from tests.test_evaluate import run_binary

pytestmark = pytest.mark.usefixtures("ends")


@pytest.fixture
def workdir(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def data(data_dir, tmp_path):
    """A copy of the packed data, and the folder with its files."""
    shutil.copytree(data_dir, tmp_path / "data")
    return tmp_path / "data", tmp_path / "data" / DATA


# Data sets


def test_a_class_that_a_data_set_names_is_never_imported(data, tmp_path, monkeypatch):
    root, folder = data
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Tensor: pass\n")
    whole = (folder / "features.json").read_text()
    for name in ("tensor_feature.Tensor", "features_dict.FeaturesDict", "scalar.Scalar", "text_feature.Text"):
        changed = whole.replace(f"tensorflow_datasets.core.features.{name}", "evil.Tensor")
        assert changed != whole
        (folder / "features.json").write_text(changed)
        reseal(folder)
        with pytest.raises(ValueError, match=r"is damaged \(.*features.json: unexpected feature .* of class 'evil.Tensor'"):
            Source(str(root), "subtask2")
    assert not (tmp_path / "ran").exists()


OURS = {"name": "train_real", "filepathTemplate": builder.TEMPLATE, "numBytes": "1", "shardLengths": ["1"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fileFormat": "tfrecord"}, "fileFormat is 'tfrecord'"),
        ({"name": "../other"}, "name is '../other'"),
        ({"alternativeFileFormats": ["x"]}, "alternativeFileFormats is"),
        ({"splits": [{"name": "train_real", "filepathTemplate": "../../{SPLIT}"}]}, "split .* is not ours"),
        ({"splits": [{"name": "../x"}]}, "split .* is not ours"),
        (
            {"splits": [{"name": "train_real", "filepathTemplate": builder.TEMPLATE, "shardLengths": ["1"] * 9}]},
            "more shards than files",
        ),
        ({"splits": [OURS | {"shardLengths": ["1000000000"]}]}, "train_real has more records than bytes"),
        ({"splits": [OURS | {"shardLengths": [1e999]}]}, "shardLengths of train_real is"),
        ({"splits": [OURS | {"filepath_template": "/tmp/x"}]}, "split .* is not ours"),  # protobuf takes fields by two names
        ({"splits": ["x"]}, "split 'x' is not ours"),
        ({"splits": {}}, "field 'splits' is an object, expected a list"),
    ],
)
def test_what_a_data_set_says_of_its_files_is_checked(change, said, data):
    root, folder = data
    content = json.loads((folder / "dataset_info.json").read_text()) | change
    (folder / "dataset_info.json").write_text(json.dumps(content))
    reseal(folder)
    with pytest.raises(ValueError, match=f"is damaged .*{said}.*: pack the data again"):
        Source(str(root), "subtask2")


def test_records_of_another_pack_under_an_old_summary_are_noticed(data, workdir, tmp_path):
    root, folder = data
    images = phantom.subtask2(seed=9, size=48, leak=0.5, real=8, generated=20, unknown=20)
    phantom.write(tmp_path / "other", "subtask2", images, seed=9)
    packing.pack("subtask2", tmp_path / "packed", tmp_path / "other" / "train", tmp_path / "other" / "test")
    for file in (tmp_path / "packed" / DATA).glob("*train_generated*"):
        shutil.copy(file, folder)  # as of a copy that was interrupted
    results = shutil.move(workdir / "results.json", tmp_path)
    old = json.loads((folder / "summary.json").read_text())
    for summary in (old | {"files": {}}, {name: value for name, value in old.items() if name not in ("files", "seal")}):
        if "seal" in summary:
            summary["seal"] = files.seal(summary)
        (folder / "summary.json").write_text(json.dumps(summary))
        with pytest.raises(ValueError, match="the records of train_generated are not those that summary.json describes"):
            score.evaluate(methods.load(workdir, data_dir=str(root)), "heldout")
        with pytest.raises(ValueError, match="the records of train_generated are not those"):
            run_binary(evaluate, f"--workdir={workdir}", f"--data_dir={root}", "--verify", "--split=valid")
        shutil.copy(results, workdir)  # figures of other data are no reason to trust these
        for more in ([], ["--recompute"]):
            with pytest.raises(ValueError, match="the records of train_generated are not those"):
                run_binary(evaluate, f"--workdir={workdir}", f"--data_dir={root}", "--split=heldout", *more)
        (workdir / "results.json").unlink()
        config = load_config("configs/quickstart.py")  # nor is anything kept of them, for the day that the right ones are there
        config.data_dir = str(root)
        with pytest.raises(ValueError, match="the records of train_generated are not those"):
            methods.fit(Run(config, tmp_path / "fresh"))
        assert not (tmp_path / "fresh").exists()
        open_source.cache_clear()
    assert not (workdir / "results.json").exists()


def test_a_summary_that_was_changed_and_files_of_other_sizes_are_refused(data):
    root, folder = data
    Source(str(root), "subtask2").verify()
    whole = (folder / "summary.json").read_text()
    (folder / "summary.json").write_text(whole.replace('"task": "subtask2"', '"task": "subtask2", "more": 1'))
    with pytest.raises(ValueError, match="summary.json was changed after it was packed"):
        Source(str(root), "subtask2")
    (folder / "summary.json").write_text(whole)
    record = next(folder.glob("*train_real*"))
    os.truncate(record, record.stat().st_size - 1)
    with pytest.raises(ValueError, match=f"{record.name}: [0-9,]+ bytes, [0-9,]+ bytes were packed"):
        Source(str(root), "subtask2")
    record.unlink()
    os.mkfifo(record)
    with pytest.raises(ValueError, match=f"{record.name}: no file"):
        Source(str(root), "subtask2")


def test_a_class_that_a_terminal_obeys_is_no_name(data):
    root, folder = data
    summary = json.loads((folder / "summary.json").read_text()) | {"classes": ["\x1b[2J"] * 5}
    (folder / "summary.json").write_text(json.dumps(summary | {"seal": files.seal(summary)}))
    with pytest.raises(ValueError, match="is damaged .*classes are no names"):
        Source(str(root), "subtask2")


def test_classes_are_those_of_the_task_and_no_more_than_records(data, data_dir, tmp_path):
    root, folder = data
    shutil.copytree(data_dir, tmp_path / "images")
    for place, task, said in (
        (folder, "subtask2", "its classes are not those of subtask2"),
        (builder.dataset_dir(tmp_path / "images", "images"), "images", "more classes than records"),
    ):
        summary = json.loads((place / "summary.json").read_text()) | {"classes": [f"c{i}" for i in range(1000)]}
        (place / "summary.json").write_text(json.dumps(summary | {"seal": files.seal(summary)}))
        with pytest.raises(ValueError, match=f"is damaged .*{said}"):
            Source(str(root if task == "subtask2" else tmp_path / "images"), task)


@pytest.mark.parametrize("name", ["heldout", "valid", "train_generated[0shard]", "../x"])
def test_a_split_that_no_pack_has_is_refused(name, data):
    root, folder = data
    summary = json.loads((folder / "summary.json").read_text())
    summary["splits"][name] = summary["splits"]["train_generated"]
    (folder / "summary.json").write_text(json.dumps(summary | {"seal": files.seal(summary)}))
    with pytest.raises(
        ValueError, match=f"is damaged .*split {re.escape(repr(name))} is none of train_generated, test_generated, train_real"
    ):
        Source(str(root), "subtask2")


def test_a_split_that_cannot_be_compared_is_named(data, caplog):
    root, folder = data
    reseal(folder, sizes=False)
    path = next(folder.glob("*test_generated*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 50] ^= 4
    path.write_bytes(content)
    source = Source(str(root), "subtask2")
    source.verify({"train_generated"})
    assert "1 damaged records in test_generated: its content is not compared" in caplog.text
    with pytest.raises(ValueError, match="1 damaged records in test_generated: its content is not compared.*: pack the data again"):
        source.verify()


def test_labels_that_were_changed_are_noticed_beside_an_image_that_is_cut_short(data, workdir):
    root, folder = data
    path = next(folder.glob("*train_generated*"))
    reader, writer = ArrayRecordReader(str(path)), ArrayRecordWriter(str(folder / "new"), "group_size:1")
    for i, content in enumerate(reader.read_all()):
        record = tf_example_pb2.Example.FromString(content)
        record.features.feature["label"].int64_list.value[0] = (record.features.feature["label"].int64_list.value[0] + 1) % 5
        if not i:
            image = record.features.feature["image"].bytes_list.value
            image[0] = image[0][:-1]
        writer.write(record.SerializeToString())
    reader.close(), writer.close()
    os.replace(folder / "new", path)
    reseal(folder)
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["max_damaged"] = 9
    (workdir / "config.json").write_text(json.dumps(config))
    for flag in ("--verify", "--recompute", "--split=heldout"):
        with pytest.raises(ValueError, match="1 damaged records in train_generated"):
            run_binary(evaluate, f"--workdir={workdir}", f"--data_dir={root}", flag)


# Work directories


def test_a_folder_with_files_of_something_else_is_no_run(data_dir, tmp_path):
    project = tmp_path / "project"
    (project / "checkpoints" / "run7").mkdir(parents=True)
    (project / "checkpoints" / "model_v1.pt").write_text("weeks of training")
    (project / "metrics.jsonl").write_text('{"epoch": 1}\n')
    for name in ("config.json", "provenance.json"):
        with pytest.raises(ValueError, match="is no run, and 'checkpoints' is in it: name an empty folder"):
            fit(project, data_dir)
        (project / name).write_text("{}")  # many kinds of project have such files
    with pytest.raises(ValueError, match="provenance.json cannot be used"):
        fit(project, data_dir)
    assert (project / "checkpoints" / "model_v1.pt").exists() and (project / "metrics.jsonl").read_text() == '{"epoch": 1}\n'
    # What the launcher, a kill and a system leave is in no way.
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("log.txt", "failed.json", "lock", ".config.json.123.tmp", ".DS_Store", "train.out"):
        (begun / name).write_text("")
    fit(begun, data_dir)
    assert (begun / "done").exists()


def test_what_is_not_of_a_start_that_fails_outlives_it(data_dir, tmp_path, monkeypatch):
    run, theirs = tmp_path / "run", {"lost+found": "", "lost+found/#12": b"weeks of work"}

    def fails(*_):  # after somebody has put something beside what the start wrote
        for name in ("analysis", "tensorboard"):
            (run / name).mkdir()
            (run / name / "notes.md").write_text("a day of work")
        (run / "notes.md").write_text("an hour of work")
        raise ValueError("a mistake that nobody could know")

    (run / "lost+found").mkdir(parents=True)
    (run / "lost+found" / "#12").write_text("weeks of work")
    monkeypatch.setattr(loop, "train", fails)
    with pytest.raises(ValueError, match="a mistake"):
        fit(run, data_dir)
    theirs |= {"analysis": "", "analysis/notes.md": b"a day of work", "notes.md": b"an hour of work"}
    assert tree(run) == theirs


def test_a_name_that_is_almost_a_number_is_no_checkpoint(workdir):
    (workdir / "checkpoints" / "²").mkdir()
    (workdir / "digests" / "²").touch()
    (workdir / "digests" / "².removed").touch()
    found = checkpoint.Checkpoints(workdir)
    found.prune()
    assert found.resolve("latest") == checkpoint.steps(workdir)[-1] and (workdir / "checkpoints" / "²").is_dir()
    with pytest.raises(ValueError, match=r"^step='²': .* has checkpoints "):
        found.resolve("²")


def test_a_lock_that_is_not_ours_is_not_overwritten(data_dir, tmp_path):
    (tmp_path / "lock").write_text("my keys")
    with pytest.raises(ValueError, match=f"^{tmp_path}/lock: no lock of ours, it is not overwritten: move it away$"):
        fit(tmp_path, data_dir)
    assert tree(tmp_path) == {"lock": b"my keys"}


def test_to_compute_anew_removes_nothing_that_is_not_ours(workdir):
    mine = ["predictions/notes.txt", "predictions/mine.csv", "outputs/mine.npz", "features/of/mine"]
    (workdir / "features" / "of").mkdir(parents=True)
    (workdir / "outputs").mkdir(exist_ok=True)
    for name in mine:
        (workdir / name).write_text("weeks of work")
    run_binary(evaluate, f"--workdir={workdir}", "--recompute")
    assert {(workdir / name).read_text() for name in mine} == {"weeks of work"}


def test_what_lies_in_damaged_stays_there(workdir):
    step = methods.get("gradient").state(methods.load(workdir))
    for content in ("first", "second"):
        (workdir / "checkpoints" / str(step)).mkdir(exist_ok=True)
        (workdir / "checkpoints" / str(step) / "mine").write_text(content)
        checkpoint.Checkpoints(workdir).prune()
    for name, content in ((str(step), "first"), (f"{step}.1", "second")):
        assert (workdir / "damaged" / name / str(step) / "mine").read_text() == content


def test_only_what_orbax_left_is_removed_from_checkpoints(workdir, data_dir):
    (workdir / "done").unlink()
    (workdir / "checkpoints" / "notes").mkdir()
    (workdir / "checkpoints" / "99.orbax-checkpoint-tmp-1").mkdir()
    fit(workdir, data_dir)
    assert (workdir / "checkpoints" / "notes").is_dir() and not list(workdir.glob("checkpoints/*tmp*"))


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl", "predictions", "results.json", "results.lock", "checkpoints"])
def test_links_in_a_work_directory_are_not_written_through(name, workdir, data_dir, tmp_path):
    target = tmp_path / "mine"
    if (workdir / name).is_dir():
        shutil.move(workdir / name, target)
    else:
        (workdir / name).unlink(missing_ok=True)
        target.write_text("my keys")
    before = sorted(target.rglob("*")) if target.is_dir() else target.read_text()
    (workdir / name).symlink_to(target)
    (workdir / "done").unlink()
    for act in (lambda: fit(workdir, data_dir), lambda: score.evaluate(methods.load(workdir), "heldout")):
        with pytest.raises(ValueError, match=f"{name} is a link, and nothing is written through one"):
            act()
    assert (sorted(target.rglob("*")) if target.is_dir() else target.read_text()) == before


def test_links_to_other_folders_in_place_of_children_are_neither_written_nor_emptied(workdir, tmp_path):
    victim = tmp_path / "mine"
    for name in ("features", "outputs", "predictions"):
        (victim / name).mkdir(parents=True)
    (victim / "config.json").write_text("{}")
    before = sorted(victim.rglob("*"))
    run = methods.load(workdir)
    (workdir / "children").mkdir()
    (workdir / "children" / "x").symlink_to(victim)
    for act in (lambda: methods.predict(run, "valid"), lambda: run_binary(evaluate, f"--workdir={workdir}", "--recompute")):
        with pytest.raises(ValueError, match="children/x is a link, and nothing is written through one"):
            act()
    assert sorted(victim.rglob("*")) == before


def test_a_link_between_a_run_and_its_child_is_not_written_through(workdir, tmp_path):
    (tmp_path / "elsewhere" / "seed0").mkdir(parents=True)
    run = methods.load(workdir)
    (workdir / "children" / "round0").mkdir(parents=True)
    (workdir / "children" / "round0" / "children").symlink_to(tmp_path / "elsewhere")
    child = run.child("round0", run.config, seed=0, fold=-1).child("seed0", run.config, seed=0, fold=-1)
    with pytest.raises(ValueError, match="children/round0/children is a link, and nothing is written through one"):
        child.refuse_links()


def test_a_child_that_is_a_link_is_not_written_through(workdir, data_dir, tmp_path):
    (workdir / "children").mkdir()
    other = shutil.copytree(workdir, tmp_path / "other")
    (workdir / "children" / "round0").symlink_to(other)
    (workdir / "done").unlink()
    for act in (lambda: fit(workdir, data_dir), lambda: run_binary(evaluate, f"--workdir={workdir}", "--recompute")):
        with pytest.raises(ValueError, match="children/round0 is a link, and nothing is written through one"):
            act()
    assert (other / "predictions" / "heldout.csv").exists()


def test_a_copy_that_follows_a_training_writes_to_nothing_that_is_not_ours(workdir, tmp_path):
    keys, home = tmp_path / "keys", workdir / "watch-valid"
    keys.write_text("my keys")
    follow = f"--workdir={workdir}", "--watch=1", "--split=valid"
    home.symlink_to(tmp_path)
    with pytest.raises(ValueError, match="watch-valid is a link"):
        run_binary(evaluate, *follow)
    home.unlink()
    home.mkdir()
    (home / "config.json").symlink_to(keys)
    with pytest.raises(ValueError, match="watch-valid/config.json is a link"):
        run_binary(evaluate, *follow)
    (home / "config.json").unlink()
    (home / "config.json").write_text('{"epoch": 1}')
    with pytest.raises(ValueError, match="watch-valid is no run, and 'config.json' is in it"):
        run_binary(evaluate, *follow)
    assert keys.read_text() == "my keys" and (home / "config.json").read_text() == '{"epoch": 1}'


def test_results_of_something_else_are_not_replaced(tmp_path):
    for name in ("p", "t"):
        (tmp_path / f"{name}.csv").write_text("a,0\nb,1\n")
    asked = "--task=subtask1", f"--predictions={tmp_path / 'p.csv'}", f"--truth={tmp_path / 't.csv'}", f"--output={tmp_path}"
    (tmp_path / "results.json").write_text('{"epoch": 1}')
    with pytest.raises(ValueError, match="results.json cannot be used .field 'schema' is missing.: it is not replaced"):
        run_binary(evaluate, *asked)
    assert (tmp_path / "results.json").read_text() == '{"epoch": 1}'
    (tmp_path / "results.json").unlink()
    for _ in range(2):
        run_binary(evaluate, *asked)


def test_what_a_system_leaves_in_folders_is_passed_over(workdir, data_dir, caplog):
    step = methods.predict(methods.load(workdir), "heldout")
    state = methods.get("gradient").state(methods.load(workdir))
    (workdir / "digests" / f"._{state}.json").write_text("x")
    for place in (workdir, workdir / "checkpoints", workdir / "checkpoints" / str(state), workdir / "predictions"):
        (place / ".DS_Store").write_text("x")
    (workdir / "done").unlink()
    fit(workdir, data_dir)
    assert methods.get("gradient").state(methods.load(workdir)) == state and "damaged" not in caplog.text
    assert (methods.predict(methods.load(workdir), "heldout").scores == step.scores).all()


def test_a_manifest_that_names_files_elsewhere_is_damaged(workdir, tmp_path):
    state = methods.get("gradient").state(methods.load(workdir))
    path = workdir / "digests" / f"{state}.json"
    for other in (workdir / "digests").glob("*.json"):
        if other != path:
            other.unlink()
    whole = json.loads(path.read_text())
    (workdir / "predictions" / "heldout.csv").unlink()
    for name in ("/dev/zero", "../../../x"):
        content = whole | {"files": whole["files"] | {name: "0" * 64}}
        path.write_text(json.dumps(content | {"sha256": files.seal(content)}))
        with pytest.raises(ValueError, match="no usable checkpoint"):
            methods.predict(methods.load(workdir), "heldout")
    # A pipe in place of one of its files.
    path.write_text(json.dumps(whole))
    file = workdir / "checkpoints" / str(state) / next(iter(whole["files"]))
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match="no usable checkpoint"):
        methods.predict(methods.load(workdir), "heldout")


def test_a_config_that_names_a_device_is_refused(workdir):
    content = json.loads((workdir / "config.json").read_text())
    content["data"]["extra_labels"] = "/dev/zero"
    (workdir / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="/dev/zero: no regular file, expected a file"):
        score.evaluate(methods.load(workdir), "heldout")


def test_predictions_of_other_images_are_computed_again(workdir, tmp_path):
    path = workdir / "predictions" / "heldout.csv"
    before, scores = path.read_bytes(), score.figures(workdir)["splits"]["heldout"]["metrics"]["accuracy"]

    def forge(change):
        rows = list(csv.reader(before.decode().splitlines()))
        change(rows)
        with path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        described = path.with_name("heldout.csv.json")
        meta = json.loads(described.read_text()) | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        described.write_text(json.dumps(meta))

    def rename(rows):
        for row, name in zip(rows[1:], ("=cmd|' /C calc'!A0", "a\nb", "../../x"), strict=False):
            row[0] = name

    def all_right(rows):
        for row in rows[1:]:
            row[1:] = ["1" if k == int(row[0][5]) - 1 else "0" for k in range(5)]

    forge(rename)
    found = score.evaluate(
        methods.load(workdir), "heldout", {"path": tmp_path / "s.csv", "header": False, "extension": "", "style": "int"}
    )
    assert path.read_bytes() == before and found["metrics"]["accuracy"] == scores and "=" not in (tmp_path / "s.csv").read_text()
    # Scores alone: no digest shows it, anybody can make one. They are computed again where it is asked, and before a first figure.
    forge(all_right)
    assert score.evaluate(methods.load(workdir), "heldout")["metrics"]["accuracy"] == 1
    run_binary(evaluate, f"--workdir={workdir}", "--recompute")
    assert path.read_bytes() == before and score.figures(workdir)["splits"]["heldout"]["metrics"]["accuracy"] == scores
    # Nor are figures that do not say what they are of a reason to believe it, whatever was scored beside them.
    told = json.loads((workdir / "results.json").read_text()) | {"splits": {"heldout": {"metrics": {}}}}
    for handed in (None, told, told | {"schema": 2}):
        (workdir / "results.json").unlink()
        if handed:
            (workdir / "results.json").write_text(json.dumps(handed))
            score.evaluate(methods.load(workdir), "valid")
        forge(all_right)
        assert score.evaluate(methods.load(workdir), "heldout")["metrics"]["accuracy"] == scores


def mutations(content: dict):
    """JSON that is wrong in one way each, and the field that is."""
    for name in content:
        for value in (None, [], {}, "x", -1, 1e999, True, [[]], {"a": None}):
            if type(value) is not type(content[name]):
                yield name, json.dumps(content | {name: value})
        yield name, json.dumps({other: value for other, value in content.items() if other != name})
    for text in ("", "{", "[]", "null", "3", '"x"', "[" * 100_000, "\ud800", json.dumps(content)[:-20]):
        yield "", text


JSON = ("config.json", "provenance.json", "results.json", "done", "predictions/heldout.csv.json", "digests/STEP.json")


@pytest.mark.parametrize("name", JSON)
def test_json_of_a_run_that_is_not_ours_is_one_line_or_made_again(name, workdir, data_dir):
    name = name.replace("STEP", str(methods.get("gradient").state(methods.load(workdir))))
    path = workdir / name
    before = path.read_text()
    content = json.loads(before)
    seal = "sha256" in content and name.startswith("digests")
    for field, text in mutations(content):
        if seal and field:
            found = json.loads(text)
            text = json.dumps(found | {"sha256": files.seal(found)} if field != "sha256" else found)
        for act in (lambda: score.evaluate(methods.load(workdir), "heldout"), lambda: fit(workdir, data_dir)):
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            try:
                act()
            except (ValueError, OSError) as error:
                assert "\n" not in str(error).strip(), (field, text[:100])
            finally:
                path.write_text(before)
    os.unlink(path)
    os.mkfifo(path)
    with contextlib.suppress(ValueError, OSError):
        score.evaluate(methods.load(workdir), "heldout")


@pytest.mark.parametrize("name", ["summary.json", "dataset_info.json", "features.json"])
def test_json_of_a_data_set_that_is_not_ours_is_one_line(name, data):
    root, folder = data
    whole = json.loads((folder / "summary.json").read_text())
    content = json.loads((folder / name).read_text())
    for field, text in mutations(content):
        (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        if name == "summary.json" and field:
            found = json.loads(text)
            (folder / name).write_text(json.dumps(found | {"seal": files.seal(found)} if field != "seal" else found))
        else:
            summary = whole | {"files": {}}
            (folder / "summary.json").write_text(
                json.dumps(summary | {"seal": files.seal(summary)})
            ) if name != "summary.json" else None
        try:
            source = Source(str(root), "subtask2")
            for split in source.splits:
                source.rows(split)
        except ValueError as error:
            assert str(folder) in str(error) and "\n" not in str(error), (field, text[:100])


def test_names_in_brackets_are_printed_as_they_are(trained, tmp_path, capsys):
    for place in ("[old]", "x[", "[bold red]"):
        shutil.copytree(trained, tmp_path / place / "run")
        run_binary(evaluate, f"--workdir={tmp_path / place / 'run'}", f"--submission={tmp_path / place / 's.csv'}")
        out = capsys.readouterr().out
        assert f"results: {tmp_path / place / 'run' / 'results.json'}" in out and f"submission: {tmp_path / place / 's.csv'}" in out
    assert binary  # the binary of a training prints with `print`


@pytest.mark.parametrize("place", ["children/a", "children"])
def test_recompute_removes_nothing_where_a_link_leads(place, workdir, tmp_path):
    mine = tmp_path / "mine"
    for folder in (mine, mine / "a"):
        (folder / "outputs").mkdir(parents=True)
        (folder / "outputs" / "weeks").write_text("x")
        (folder / "config.json").write_text("{}")
    (workdir / place).parent.mkdir(exist_ok=True)
    (workdir / place).symlink_to(mine)
    with pytest.raises(ValueError, match=f"{place} is a link, and nothing is written through one"):
        run_binary(evaluate, f"--workdir={workdir}", "--recompute")
    assert (mine / "outputs" / "weeks").exists() and (mine / "a" / "outputs" / "weeks").exists()


def test_a_child_refuses_links_where_what_all_children_look_at_is_kept(tmp_path):
    above, mine = tmp_path / "run", tmp_path / "mine"
    mine.mkdir()
    (above / "children").mkdir(parents=True)
    for name in ("config.json", "provenance.json"):
        (above / name).write_text("{}")
    (above / "features").symlink_to(mine)
    child = Run(load_config("configs/quickstart.py"), above / "children" / "fold0")
    with pytest.raises(ValueError, match="features is a link"):
        child.refuse_links()


def test_children_that_are_links_to_their_run_have_an_end(workdir):
    (workdir / "children").mkdir()
    for name in "ab":
        (workdir / "children" / name).symlink_to(workdir)
    with pytest.raises(ValueError, match="is a link"):
        score.evaluate(methods.load(workdir), "heldout")


def test_a_run_that_is_compared_is_written_to_through_no_link(workdir, trained, tmp_path):
    other, mine = shutil.copytree(trained, tmp_path / "other"), tmp_path / "mine"
    mine.mkdir()
    shutil.rmtree(other / "predictions")
    (other / "predictions").symlink_to(mine)
    with pytest.raises(ValueError, match="predictions is a link"):
        run_binary(evaluate, f"--workdir={workdir}", "--report", f"--compare={other}")
    assert not list(mine.iterdir())


def forge(folder):
    """Turns the scores of all tables that are kept in a folder and below it around, with digests made anew."""
    for path in folder.rglob("predictions/*.csv"):
        ids, scores, meta = tables.read_predictions(path)
        tables.write_predictions(path, np.array(ids), -scores, meta)


def rewrite(path, field, values):
    content = json.loads(path.read_text())
    content[field] |= values
    path.write_text(json.dumps(content))


def accuracy(folder, split="heldout"):
    return score.figures(folder)["splits"][split]["metrics"]["accuracy"]


PLACES = ["children", "children that say another of themselves", "watch-train_generated"]


@pytest.mark.parametrize("place", PLACES)
def test_recompute_reads_no_table_of_before_wherever_it_lies(place, data_dir, tmp_path):
    member = base.featured("subtask2", "pixels")
    member.gallery = ConfigDict({"labelled": ("train_generated",)})
    config = base.finish(base.cross_fitted(member), "")
    config.decision.name, config.decision.known = "argmax", ""
    config.data_dir = data_dir
    run = Run(config, tmp_path / "run")
    methods.fit(run)
    before = score.evaluate(run, "heldout")["metrics"]["accuracy"]
    folder = run.workdir
    if place.startswith("watch"):  # scored by itself, and kept in what looks like a run around it
        folder = shutil.copytree(folder, folder / place)
        (folder / "lock").unlink()
    else:
        shutil.rmtree(folder / "predictions")
    forge(folder)
    run_binary(evaluate, f"--workdir={folder}")
    assert accuracy(folder) != before  # the figures of before are there, so that tables are believed
    forge(folder / "children") if place.startswith("children") else forge(folder)
    for child in folder.glob("children/*") if "say" in place else ():  # that they were started with other data
        rewrite(child / "provenance.json", "fingerprints", {"other": ""})
    run_binary(evaluate, f"--workdir={folder}", "--recompute")
    assert accuracy(folder) == before


@pytest.mark.parametrize("recompute", [[], ["--recompute"]])
def test_children_that_were_exchanged_are_scored_as_nothing(recompute, data_dir, tmp_path):
    """Each has learned from the rows that the other holds out."""
    config = base.finish(base.cross_fitted(base.featured("subtask2", "pixels")), "")
    config.member.gallery = ConfigDict({"labelled": ("train_generated",)})
    config.data_dir, config.decision.name, config.decision.known = data_dir, "argmax", ""
    methods.fit(Run(config, tmp_path / "run"))
    a, b, *_ = sorted((tmp_path / "run" / "children").iterdir())
    for source, target in ((a, "aside"), (b, a.name), (a.with_name("aside"), b.name)):
        source.rename(a.with_name(target))
    with pytest.raises(
        ValueError,
        match=f"{a.name} is not the run that was trained for this: config.data.fold is 1 there, 0 in the run that uses it",
    ):
        run_binary(evaluate, f"--workdir={tmp_path / 'run'}", *recompute)
    assert not (tmp_path / "run" / "results.json").exists()


def test_what_a_run_compares_with_is_of_the_data_that_it_was_started_with(data_dir, tmp_path):
    config = base.featured("subtask2", "pixels")
    config.gallery = ConfigDict({"labelled": ("train_generated",)})
    config.data.folds, config.data.fold, config.decision.name, config.decision.known = 2, 0, "argmax", ""
    config.data_dir = str(shutil.copytree(data_dir, tmp_path / "theirs"))
    run = tmp_path / "run"
    methods.fit(Run(base.finish(config, ""), run))
    rewrite(run / "provenance.json", "fingerprints", {"other": ""})  # so that the data of its config are looked at
    images = phantom.subtask2(seed=9, size=48, leak=0.5, real=8, generated=20, unknown=20)
    phantom.write(tmp_path / "other", "subtask2", images, seed=9)
    packing.pack("subtask2", tmp_path / "packed", tmp_path / "other" / "train", tmp_path / "other" / "test")

    def evaluated(data):
        open_source.cache_clear()
        run_binary(evaluate, f"--workdir={run}", f"--data_dir={data}", "--split=train_generated", "--recompute")

    evaluated(tmp_path / "packed")
    (tmp_path / "extra.csv").write_text("split,id,label\n")
    rewrite(run / "config.json", "data", {"extra_labels": str(tmp_path / "extra.csv")})  # of a child, whose parent has none
    without = Run(config, run)
    without.config.data_dir = str(tmp_path / "packed")
    with pytest.raises(ValueError, match="config.data.extra_labels is False, the run was started with True"):
        _ = without.own
    rewrite(run / "config.json", "data", {"extra_labels": ""})
    whole = Run(config, run)
    whole.config.data.fold, whole.config.data_dir = 1, str(tmp_path / "packed")
    with pytest.raises(ValueError, match="config.data.fold is 1, the run was started with 0"):
        _ = whole.own
    folder = tmp_path / "theirs" / DATA
    for file in (tmp_path / "packed" / DATA).glob("*train_generated*"):
        shutil.copy(file, folder)
    reseal(folder)
    with pytest.raises(ValueError, match=f"^{folder}: the records of train_generated are not those that summary.json describes"):
        evaluated(tmp_path / "packed")
    # Nothing is kept of them either, where another run would find it under the fingerprints that they claim.
    theirs = open_source(str(tmp_path / "theirs"), "subtask2")
    with pytest.raises(ValueError, match="the records of train_generated are not those that summary.json describes"):
        theirs.cached(tmp_path / "kept.npz", lambda: {"x": np.zeros(1)}, theirs.rows("train_generated"))
    assert not (tmp_path / "kept.npz").exists()
    shutil.copytree(tmp_path / "packed", tmp_path / "theirs", dirs_exist_ok=True)
    with pytest.raises(ValueError, match=f"{run} was started with another train_generated than that of {tmp_path}/theirs"):
        evaluated(data_dir)


def test_a_network_compares_images_of_other_data_with_no_labels_of_their_own(data_dir, tmp_path):
    config = load_config("configs/subtask2/aimm_siamese.py")
    config.data_dir, config.num_steps, config.best = data_dir, 0, ""
    config.gallery.real = ("train_generated",)
    config.data.folds, config.data.fold, config.data.valid, config.decision.known = 0, -1, 0.0, ""
    methods.fit(Run(config, tmp_path / "run"))
    images = phantom.subtask2(seed=9, size=48, leak=0.5, real=8, generated=20, unknown=20)
    phantom.write(tmp_path / "other", "subtask2", images, seed=9)
    packing.pack("subtask2", tmp_path / "packed", tmp_path / "other" / "train", tmp_path / "other" / "test")
    run = methods.load(tmp_path / "run", data_dir=str(tmp_path / "packed"))
    with pytest.raises(ValueError, match="which it was not started with, would be compared with themselves"):
        score.evaluate(run, "train_generated")
    assert score.evaluate(run, "test_generated")["n"] == 20  # by the labels of others


def test_recompute_leaves_out_kept_features(data_dir, tmp_path):
    config = load_config("configs/subtask2/residual_svm.py")
    config.data_dir, run = data_dir, tmp_path / "run"
    methods.fit(Run(config, run))
    images = phantom.subtask2(seed=9, size=48, leak=0.5, real=8, generated=20, unknown=20)
    phantom.write(tmp_path / "other", "subtask2", images, seed=9)
    packing.pack("subtask2", tmp_path / "packed", tmp_path / "other" / "train", tmp_path / "other" / "test")
    asked = {"heldout": data_dir, "train_generated": str(tmp_path / "packed")}
    for split, data in asked.items():  # what is compared with is that of the data that the run was fitted to
        before = score.evaluate(methods.load(run, data_dir=data), split)["metrics"]["accuracy"]
        forged = {path: {"x": tables.read_arrays(path)["x"][::-1]} for path in (run / "features").glob("*.npz")}
        assert forged
        for path, arrays in forged.items():
            tables.write_arrays(path, arrays)
        run_binary(evaluate, f"--workdir={run}", f"--data_dir={data}", f"--split={split}", "--recompute")
        assert accuracy(run, split) == before
        for path in forged:
            path.unlink(missing_ok=True)


@pytest.mark.parametrize("method", ["classical", "ensemble"])
def test_the_config_of_a_run_leads_to_no_folder_of_features(method, data_dir, tmp_path):
    """It moves with no digest: whoever sent the run could have named any."""
    config = load_config("configs/subtask2/residual_svm.py")
    config.data_dir, config.features.cache_dir, run = data_dir, str(tmp_path / "cache"), tmp_path / "run"
    if method == "ensemble":
        own = {field: config[field].to_dict() for field in ("features", "estimator", "gallery")}
        config = base.ensemble(config.copy_and_resolve_references())
        config.data = config.member.data
        config.data_dir, config.ensemble.variants = data_dir, ConfigDict({"a": {}, "b": own | {"pca": 3}})
    methods.fit(Run(config, run))
    assert list((tmp_path / "cache").iterdir())  # trainings share it
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(run / "predictions", ignore_errors=True)
    run_binary(evaluate, f"--workdir={run}", "--split=heldout")
    assert not (tmp_path / "cache").exists() and list((run / "features").iterdir())


def test_a_first_figure_makes_the_tables_of_runs_that_are_used_anew(workdir, data_dir, tmp_path):
    before = accuracy(workdir)
    vote = load_config("configs/subtask2/siamese_vote.py")
    vote.data_dir, vote.ensemble.runs = data_dir, (str(workdir),)
    vote.data.folds, vote.data.fold = (methods.load(workdir).config.data[name] for name in ("folds", "fold"))
    run = Run(vote, tmp_path / "vote")
    methods.fit(run)
    assert score.evaluate(run, "heldout")["metrics"]["accuracy"] == before
    (named,) = (run.workdir / "named").iterdir()
    for folder in (workdir, named):  # the former is not looked at
        forge(folder)
    shutil.rmtree(run.workdir / "predictions")
    (run.workdir / "results.json").unlink()
    assert score.evaluate(Run(vote, run.workdir), "heldout")["metrics"]["accuracy"] == before
    assert (tables.read_predictions(named / "predictions" / "heldout.csv")[1] >= 0).all()


def test_predictions_of_other_classes_are_computed_again(workdir):
    path = workdir / "predictions" / "heldout.csv"
    ids, scores, meta = tables.read_predictions(path)
    tables.write_predictions(path, np.array(ids), np.eye(9, dtype=np.float32)[np.full(len(ids), 8)], meta)
    assert methods.predict(methods.load(workdir), "heldout").scores.shape == scores.shape


@pytest.mark.parametrize("kind", ["pipe", "compressed", "shape", "others", "text"])
def test_kept_outputs_that_are_none_are_computed_again(kind, workdir):
    shutil.rmtree(workdir / "outputs")

    def anew():
        (workdir / "predictions" / "heldout.csv").unlink()
        return methods.predict(methods.load(workdir), "heldout").scores

    before = anew()
    (path,) = (workdir / "outputs").glob("*.npz")
    known = tables.read_arrays(path)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "compressed":
        np.savez_compressed(path, **known)
        content = path.read_bytes()
        path.write_bytes(content[:100] + bytes(len(content) // 2) + content[100 + len(content) // 2 :])
    elif kind == "shape":
        np.savez(path, **{name: x[:3] for name, x in known.items()})
    else:
        np.savez(path, **{name: np.full(x.shape, "x") for name, x in known.items()} if kind == "text" else {"x": np.zeros(3)})
    assert (anew() == before).all() and path.is_file()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("label", "has a label that is none of -1 to 4"),
        ("long", "an id or a group 'a+' that has 100,000 characters"),
        ("bytes", "that holds unprintable characters, or bytes that are not UTF-8"),
        ("/tmp/y", "an id '/tmp/y' that leads out of a folder"),
        ("t1/../../y", "an id 't1/../../y' that leads out of a folder"),
        ("garbage", r"not those that summary.json|has 0 rows|damaged"),
    ],
)
def test_records_that_are_none_of_ours_are_one_line(kind, said, data):
    root, folder = data
    (file,) = folder.glob("*test_generated*")
    reader = ArrayRecordReader(str(file))
    records = list(reader.read_all())
    reader.close()
    example = tf_example_pb2.Example.FromString(records[0])
    example.features.feature["label"].int64_list.value[0] = 77 if kind == "label" else -1
    if kind not in ("label", "garbage"):
        id = {"long": b"a" * 100_000, "bytes": b"\xff"}.get(kind, kind.encode())
        example.features.feature["id"].bytes_list.value[0] = id
    records[0] = b"\xff garbage" if kind == "garbage" else example.SerializeToString()
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    (folder / "files.csv").write_text("split,id,label,group\n")
    summary = json.loads((folder / "summary.json").read_text()) | {"files": {}}
    (folder / "summary.json").write_text(json.dumps(summary | {"seal": files.seal(summary)}))
    with pytest.raises(ValueError, match=said):
        Source(str(root), "subtask2").rows("test_generated")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("starts", [{"topology": "x", "versions": [], "settings": 3}]),
        ("fingerprints", {"train_generated": 5}),
        ("changes", [{"step": 1, "field": 5, "from": 0, "to": 0}]),
    ],
)
def test_what_is_inside_the_provenance_is_checked(field, value, workdir):
    path = workdir / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ValueError, match="provenance.json cannot be used .a start, a change or a fingerprint is not whole"):
        _ = methods.load(workdir).provenance


def test_a_checkpoint_that_cannot_be_read_is_one_line(workdir):
    state = methods.get("gradient").state(methods.load(workdir))
    manifest = workdir / "digests" / f"{state}.json"
    whole = json.loads(manifest.read_text())
    for name in (name for name in whole["files"] if name.endswith(("_METADATA", "process_0")) or "/d/" in name):
        file = workdir / "checkpoints" / str(state) / name
        before = file.read_bytes()
        file.write_bytes(b"")
        content = whole | {"files": whole["files"] | {name: hashlib.sha256(b"").hexdigest()}}
        manifest.write_text(json.dumps(content | {"sha256": files.seal(content)}))
        for kept in ("predictions", "outputs"):
            shutil.rmtree(workdir / kept, ignore_errors=True)
        with contextlib.suppress(ValueError):  # whatever it is, it is one
            score.evaluate(methods.load(workdir), "heldout")
        file.write_bytes(before)
