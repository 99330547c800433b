"""Views of the data, the config of a resumed run, and stale tables."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from sklearn.model_selection import StratifiedKFold

from fingerprint_jax import methods
from fingerprint_jax.data import packing, phantom
from fingerprint_jax.data.source import open_source
from fingerprint_jax.runs import start
from fingerprint_jax.runs.config import network_config
from fingerprint_jax.runs.run import Run
from tests.conftest import CONFIGS, fit, load_config


def _config(data_dir, **data):
    config = load_config("configs/quickstart.py")
    config.data_dir = data_dir
    config.data.update(data)
    return config


def test_folds_and_valid_share_no_image_or_group_and_cover_everything(data_dir, tmp_path):
    held = []
    for fold in range(5):
        config = load_config("configs/subtask1/aimm_siamese.py").member
        config.data_dir, config.data.folds, config.data.fold, config.data.valid = data_dir, 5, fold, 0.25
        run = Run(config, tmp_path)
        parts = {name: run.rows(name) for name in ("train_real", "valid", "heldout")}
        assert sum(map(len, parts.values())) == len(run.source.rows("train_real")) == 40
        groups = [set(rows.groups) for rows in parts.values()]
        assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
        assert all(set(rows.labels) == {0, 1} for rows in parts.values())
        held.append(set(parts["heldout"].ids))
    assert set.union(*held) == set(run.source.rows("train_real").ids)
    assert sum(map(len, held)) == 40


def test_a_share_of_several_parts_is_the_first_folds_and_one_of_one_part_as_ever(data_dir, tmp_path):
    total = len(Run(_config(data_dir), tmp_path).source.rows("train_generated"))  # 20 a class, each a group

    def valid(share):
        run = Run(_config(data_dir, folds=0, fold=-1, valid=share, sequester=0.3), tmp_path)
        held, apart = (set(run.rows(split).ids) for split in ("valid", "sequestered"))
        assert not held & apart and abs(len(apart) - 0.3 * (total - len(held))) < 5  # of five classes, less than one each
        return held

    for share in (0.1, 0.25, 0.35, 0.4, 0.45):
        assert len(valid(share)) == round(share * total)
    assert valid(0.2) < valid(0.4)
    rows = Run(_config(data_dir), tmp_path).source.rows("train_generated")
    split = StratifiedKFold(4, shuffle=True, random_state=1).split(rows.labels, rows.labels)
    assert valid(0.25) == set(rows.ids[next(split)[1]])
    for share, text in ((0.33, "whole parts are taken, use 0.315789"), (0.9, "use 0 to 0.5"), (7.0, "use 0 to 0.5"), (-0.2, "use")):
        with pytest.raises(ValueError, match=f"^data.valid={share}: {text}"):
            Run(_config(data_dir, valid=share), tmp_path)


def test_rows_by_label(data_dir, tmp_path):
    run = Run(_config(data_dir), tmp_path)
    assert set(run.rows("train_real:2").labels) == {2}


@pytest.mark.parametrize(
    ("split", "message"), [("valid", "data.valid"), ("heldout", "data.folds"), ("nothing", "train_generated, train_real")]
)
def test_a_split_that_is_not_there_says_what_would_be(split, message, data_dir, tmp_path):
    with pytest.raises(ValueError, match=message):
        Run(_config(data_dir, folds=0, fold=-1, valid=0.0), tmp_path).rows(split)


@pytest.mark.parametrize("path", CONFIGS)
def test_a_config_survives_its_file(path, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "check", lambda run: None)  # of weights and runs that are not here
    config = load_config(path, "")
    config.data_dir = data_dir
    if network_config(config).method == "gradient":
        network_config(config).optimizer.rates = (("^backbone/", 0.5),)
    for _ in range(2):
        with methods.fitting(Run(config, tmp_path)):
            assert Run.load(tmp_path).config.to_dict() == config.to_dict()


@pytest.mark.parametrize("task", ["subtask1", "subtask2"])
def test_what_is_sequestered_is_a_part_of_its_own_and_moves_no_other(task, data_dir, tmp_path):
    def views(sequester):
        config = network_config(load_config(f"configs/{task}/aimm_siamese.py"))
        config.data_dir, config.data.sequester = data_dir, sequester
        config.data.folds, config.data.fold, config.data.valid = 5, 1, 0.25
        return Run(config, tmp_path)

    run, plain = views(0.25), views(0.0)
    parts = {name: run.rows(name) for name in (run.target, "valid", "heldout", "sequestered")}
    assert sum(map(len, parts.values())) == len(run.source.rows(run.target))
    for name in ("valid", "heldout"):
        np.testing.assert_array_equal(parts[name].index, plain.rows(name).index)
    left = parts[run.target], parts["sequestered"]
    np.testing.assert_array_equal(np.sort(np.concatenate([rows.index for rows in left])), plain.rows(run.target).index)
    groups = [set(rows.groups) for rows in parts.values()]
    assert not any(a & b for i, a in enumerate(groups) for b in groups[:i])
    labels, counts = np.unique(parts["sequestered"].labels, return_counts=True)
    assert len(labels) == run.source.num_classes and np.ptp(counts) <= (4 if task == "subtask1" else 1)
    assert abs(len(parts["sequestered"]) - len(plain.rows(run.target)) / 4) <= 2
    child = run.child("x", plain.config, seed=3, fold=1)
    np.testing.assert_array_equal(child.rows("sequestered").index, parts["sequestered"].index)


def _extra(path, *lines):
    path.write_text("\n".join(["split,id,label", *lines]) + "\n")
    return str(path)


def test_extra_labels_join_the_training_alone(data_dir, tmp_path):
    plain = Run(_config(data_dir), tmp_path)
    unknown, real = plain.rows("test_generated"), plain.rows("train_real")
    lines = [f" test_generated,{unknown.ids[7]}.png ,t5", f"train_real,{real.ids[3]},0", f"test_generated,{unknown.ids[2]},1"]
    run = Run(_config(data_dir, extra_labels=_extra(tmp_path / "extra.csv", *lines)), tmp_path)
    rows, before = run.training_rows("train_generated"), plain.rows("train_generated")
    assert rows.ids.tolist() == [unknown.ids[2], unknown.ids[7], *before.ids, real.ids[3]]
    assert rows.labels.tolist() == [1, 4, *before.labels, 0]
    assert (np.diff(rows.index) > 0).all()
    assert run.training_rows("train_generated:4").ids.tolist() == [unknown.ids[7], *before.ids[before.labels == 4]]
    for split in ("train_generated", "train_real", "test_generated", "valid", "heldout"):
        np.testing.assert_array_equal(run.rows(split).ids, plain.rows(split).ids)
        np.testing.assert_array_equal(run.rows(split).labels, plain.rows(split).labels)
    np.testing.assert_array_equal(run.training_rows("train_real").labels, real.labels)
    child = run.child("x", plain.config, seed=0, fold=0)
    np.testing.assert_array_equal(child.training_rows("train_generated").index, rows.index)


def test_extra_copies_of_what_is_held_out_stay_out(phantoms, tmp_path):
    shutil.copytree(phantoms["subtask2"], tmp_path / "i")
    for name in ("train/real", "train/generated"):  # of every labelled image a copy among the unlabelled ones
        for k, path in enumerate(sorted((tmp_path / "i" / name).rglob("*.png"))):
            shutil.copy(path, tmp_path / "i" / "test" / "generated_unknown" / f"{name[6:]}{k}.png")
    packing.pack("subtask2", tmp_path / "data", tmp_path / "i" / "train", tmp_path / "i" / "test")
    names = [f"generated{k}" for k in range(100)]
    path = _extra(tmp_path / "extra.csv", *(f"test_generated,{name},0" for name in names))
    run = Run(_config(str(tmp_path / "data"), extra_labels=path), tmp_path)
    held, trained = run.rows("heldout"), run.training_rows("train_generated")
    extra = trained.take(np.isin(trained.ids, names))
    assert 0 < len(extra) == len(trained) - len(run.rows("train_generated"))
    apart = np.concatenate([held.index, run.rows("valid").index])
    assert len(extra) == 100 - len(apart)
    assert not np.isin(run.source.digests(apart), run.source.digests(trained.index)).any()


def test_extra_images_of_patients_that_are_held_out_stay_out_whatever_they_are_called(phantoms, tmp_path):
    root = phantoms["subtask1"]
    with (root / "groups.csv").open() as file:
        named = {name: patient for split, name, patient in csv.reader(file) if split == "train_real"}
    ids = sorted(path.stem for path in (root / "test" / "real_unknown").iterdir())
    patient = dict(zip(sorted(set(named.values())), ids, strict=True))  # each is called like an image of test_real
    lines = [f"train_real,{name},{patient[of]}" for name, of in named.items()]
    lines += [f"test_real,{name},{name}" for name in ids[::2]]  # of every other one it is another image, else one of nobody
    (tmp_path / "groups.csv").write_text("\n".join(["split,id,group", *lines]) + "\n")
    packing.pack("subtask1", tmp_path / "data", root / "train", root / "test", groups=tmp_path / "groups.csv")
    config = load_config("configs/subtask1/aimm_siamese.py").member
    config.data_dir, config.data.folds, config.data.fold, config.data.valid = str(tmp_path / "data"), 2, 0, 0.0
    config.data.extra_labels = _extra(tmp_path / "extra.csv", *(f"test_real,{name},0" for name in ids))
    run = Run(config, tmp_path)
    held, trained = set(run.rows("heldout").groups.tolist()), run.training_rows("train_real")
    assert held & set(ids[::2]) and not held & set(trained.groups.tolist())
    assert set(ids) & set(trained.ids.tolist()) == set(ids) - (held & set(ids[::2]))


@pytest.mark.parametrize("split", ["train/real_not_used", "train/real_used", "test/real_unknown"])
def test_a_reference_of_images_that_are_asked_about_is_refused(split, phantoms, tmp_path):
    shutil.copytree(phantoms["subtask1"], tmp_path / "i")
    shutil.copy(sorted((tmp_path / "i" / split).iterdir())[0], tmp_path / "i" / "reference" / "again.png")
    with pytest.raises(ValueError, match="^1 images of the reference of .* are images that are asked about, or of their patients"):
        _of_reference(tmp_path, phantoms["subtask1"] / "groups.csv")


def test_a_reference_of_other_slices_of_a_patient_is_refused(phantoms, tmp_path):
    shutil.copytree(phantoms["subtask1"], tmp_path / "i")
    lines = (phantoms["subtask1"] / "groups.csv").read_text().splitlines()
    patient = next(line for line in lines if line.startswith("train_real,")).rpartition(",")[2]
    lines = [f"{line.rpartition(',')[0]},{patient}" if line.startswith("reference,") else line for line in lines]
    (tmp_path / "groups.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"^20 images of the reference of .* of '{patient}'"):
        _of_reference(tmp_path, tmp_path / "groups.csv")


def _of_reference(root, groups=""):
    """Fits a run that compares with the reference."""
    packing.pack("subtask1", root / "data", root / "i" / "train", root / "i" / "test", root / "i" / "reference", groups=groups)
    config = load_config("configs/subtask1/gan_leaks.py").member
    config.data_dir = str(root / "data")
    methods.fit(Run(config, root / "run"))


def test_a_constant_image_of_the_reference_is_no_patients(phantoms, tmp_path):
    shutil.copytree(phantoms["subtask1"], tmp_path / "i")
    for split in ("train/real_used", "reference"):
        Image.new("L", (48, 48)).save(tmp_path / "i" / split / "black.png")
    _of_reference(tmp_path, phantoms["subtask1"] / "groups.csv")
    assert (tmp_path / "run" / "done").exists()


def test_labels_of_other_classes_are_refused(tmp_path):
    for data, names in (("a", ("ant", "bee", "cow")), ("b", ("bee", "cow", "dog"))):
        for k, name in enumerate(names):
            (tmp_path / data / name).mkdir(parents=True)
            for i in range(8):
                pixels = np.random.default_rng([k, i]).integers(0, 256, (32, 32), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / data / name / f"{i}.png")
        packing.pack("images", tmp_path / f"data_{data}", tmp_path / data)
    config = load_config("configs/subtask2/residual_svm.py")
    config.task, config.gallery.labelled, config.data.valid = "images", ("train",), 0.0
    config.data_dir = str(tmp_path / "data_a")
    methods.fit(Run(config, tmp_path / "run"))
    assert methods.predict(methods.load(tmp_path / "run"), "heldout").scores.shape[1] == 3
    other = methods.load(tmp_path / "run", data_dir=str(tmp_path / "data_b"))
    said = (
        r"was started with the classes \['ant', 'bee', 'cow'\], .*data_b has \['bee', 'cow', 'dog'\]: give data of the same classes"
    )
    with pytest.raises(ValueError, match=said):
        methods.predict(other, "train")
    with pytest.raises(ValueError, match=said):
        methods.fit(Run(other.config, tmp_path / "run"))


@pytest.mark.parametrize("part", ["train_generated", "valid", "heldout", "sequestered"])
def test_extra_labels_of_the_labelled_images_are_refused(part, data_dir, tmp_path):
    config = _config(data_dir, sequester=0.2)
    name = Run(config, tmp_path).rows(part).ids[0]
    config.data.extra_labels = _extra(tmp_path / "extra.csv", f"train_generated,{name},0")
    with pytest.raises(ValueError, match="has rows of 'train_generated', use test_generated, train_real: heldout, valid and"):
        _start(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["test_real,0,0"], r"extra.csv' has rows of 'test_real', use test_generated, train_real$"),
        (["test_generated,../x,0"], r"extra.csv': 1 ids are not in test_generated \(first: \['../x'\]\)"),
        (["test_generated,ID,5"], r"extra.csv, line 2: label '5' is none of 0..4"),
        (["test_generated,ID,0", "test_generated,ID,0"], "line 3: id .* of split 'test_generated' is repeated"),
        (["test_generated,ID,0", "test_generated,ID.png,0"], "extra.csv': ids .* are both that of"),
        ([], "no labels in it"),
    ],
)
def test_extra_labels_that_are_wrong_are_one_line(lines, message, data_dir, tmp_path):
    name = Run(_config(data_dir), tmp_path).rows("test_generated").ids[0]
    path = _extra(tmp_path / "extra.csv", *(line.replace("ID", name) for line in lines))
    with pytest.raises(ValueError, match=message):
        methods.get("gradient").fit(Run(_config(data_dir, extra_labels=path), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_other_extra_labels_are_refused_and_a_file_that_moved_is_not(data_dir, tmp_path):
    ids = Run(_config(data_dir), tmp_path).rows("test_generated").ids
    config = _config(data_dir, extra_labels=_extra(tmp_path / "a.csv", f"test_generated,{ids[0]},0"))
    before = _start(config, tmp_path / "run")["fingerprints"]
    assert before.keys() - Run(config, tmp_path).source.fingerprints.keys() == {"extra_labels"}
    shutil.move(tmp_path / "a.csv", tmp_path / "b.csv")
    config.data.extra_labels = str(tmp_path / "b.csv")
    assert _start(config, tmp_path / "run")["changes"] == []
    _extra(tmp_path / "b.csv", f"test_generated,{ids[0]},1")
    was = before["extra_labels"][:12]
    with pytest.raises(ValueError, match=f"is extra_labels .{{12}}, the run was started with extra_labels {was} "):
        _start(config, tmp_path / "run")
    config.data.extra_labels = ""
    with pytest.raises(ValueError, match="the content of the data is extra_labels missing, "):
        _start(config, tmp_path / "run")


def _start(config, workdir, **options):
    with methods.fitting(Run(config, workdir, **options)):
        pass
    return json.loads((workdir / "provenance.json").read_text())


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("optimizer.learning_rate", 0.5, "config.optimizer.learning_rate is 0.5, the run was started with 0.001"),
        ("backbone.name", "resnet_tiny", "config.backbone.name is 'resnet_tiny', the run was started with 'siamese_cnn_tiny'"),
        ("seed", 7, "config.seed is 7, the run was started with 0"),
        ("data.streams.generated", 16, "config.data.streams.generated is 16, the run was started with 8"),
    ],
)
def test_a_changed_field_is_refused_with_both_values_and_the_flag(field, value, text, data_dir, tmp_path):
    config = _config(data_dir)
    _start(config, tmp_path)
    written = (tmp_path / "config.json").read_bytes()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError) as error:
        _start(config, tmp_path, allow_change=("num_steps",))
    assert str(error.value) == f"{tmp_path}: {text} (--allow_change={field} goes on with the new)"
    assert (tmp_path / "config.json").read_bytes() == written
    changes = _start(config, tmp_path, allow_change=("num_steps", field))["changes"]
    assert [(c["step"], c["field"], c["to"]) for c in changes] == [(0, field, value)]
    assert Run.load(tmp_path).config.to_dict() == config.to_dict()
    assert len(_start(config, tmp_path)["changes"]) == 1  # nothing more to allow


def test_all_changed_fields_are_named_at_once(data_dir, tmp_path):
    config = _config(data_dir)
    _start(config, tmp_path)
    config.seed, config.num_steps = 3, 9
    with pytest.raises(ValueError, match="config.num_steps is 9.*--allow_change=num_steps.*; config.seed is 3"):
        _start(config, tmp_path)


def test_other_data_is_refused_and_data_that_moved_is_not(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "moved")
    config = _config(data_dir)
    _start(config, tmp_path / "run")
    config.data_dir = str(tmp_path / "moved")
    assert _start(config, tmp_path / "run")["changes"] == []
    before = open_source(data_dir, "subtask2").fingerprints["train_real"]
    phantom.write(tmp_path / "images", "subtask2", phantom.subtask2(9, 48, 0.5, real=10, generated=13, unknown=5), seed=9)
    packing.pack("subtask2", tmp_path / "other", tmp_path / "images" / "train")
    config.data_dir = str(tmp_path / "other")
    after = open_source(config.data_dir, "subtask2").fingerprints["train_real"]
    text = f"is .*train_real {after[:12]}.* with .*train_real {before[:12]}.*.--allow_change=data "
    with pytest.raises(ValueError, match=text):
        _start(config, tmp_path / "run")
    assert [c["field"] for c in _start(config, tmp_path / "run", allow_change=("data",))["changes"]] == ["data"]


@pytest.mark.parametrize("name", ["heldout", "heldout:1", "valid", "sequestered"])
def test_what_is_held_out_is_no_stream(name, data_dir, tmp_path):
    config = _config(data_dir, folds=2, fold=0, valid=0.25, sequester=0.25)
    config.data.streams = ConfigDict({"generated": 8, name: 8})
    part = name.partition(":")[0]
    with pytest.raises(ValueError, match=f"data.streams.{name}: {part} is held out of the training, use splits of the data set"):
        _start(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with start.fitting(Run(config, tmp_path / "run"), lambda _: None, methods.fields):  # whoever has trained it so
        pass
    with pytest.raises(ValueError, match=f"data.streams.{name}: {part} is held out"):
        list(methods.sources(Run.load(tmp_path / "run")))


def test_a_finished_run_refuses_a_change_but_more_steps(data_dir, tmp_path):
    config = _config(data_dir)
    _start(config, tmp_path)
    (tmp_path / "done").write_text("{}")
    config.seed = 5
    with pytest.raises(ValueError, match="is finished, seed would change nothing"):
        _start(config, tmp_path, allow_change=("seed",))
    config.seed, config.num_steps = 0, 8
    assert len(_start(config, tmp_path, allow_change=("num_steps",))["starts"]) == 2
    assert not (tmp_path / "done").exists()


def test_another_topology_is_announced(data_dir, tmp_path, caplog):
    config = _config(data_dir)
    here = f"1x{jax.device_count()} cpu"
    assert _start(config, tmp_path)["starts"][0]["topology"] == here
    text = (tmp_path / "provenance.json").read_text()
    (tmp_path / "provenance.json").write_text(text.replace(here, "8x8 tpu"))
    assert len(_start(config, tmp_path)["starts"]) == 2
    assert f"topology changed: 8x8 tpu -> {here} processes x devices; batches are the same" in caplog.text


def test_a_change_that_the_checkpoint_does_not_fit_is_not_written(data_dir, tmp_path):
    config = _config(data_dir)
    methods.get("gradient").fit(Run(config, tmp_path))
    config.num_steps, config.backbone.name = 8, "siamese_cnn"
    with pytest.raises(ValueError, match="checkpoints/4 does not fit the config: .'params'.*float32.* in the checkpoint"):
        methods.get("gradient").fit(Run(config, tmp_path, allow_change=("num_steps", "backbone.name")))
    config.num_steps, config.backbone.name = 2, Run.load(tmp_path).config.backbone.name
    with pytest.raises(ValueError, match="num_steps=2 lies before step 4, the latest checkpoint"):
        methods.get("gradient").fit(Run(config, tmp_path, allow_change=("num_steps",)))
    assert Run.load(tmp_path).config.num_steps == 4 and (tmp_path / "done").exists()
    methods.predict(Run.load(tmp_path), "heldout")


def test_a_damaged_config_is_named(data_dir, tmp_path):
    _start(_config(data_dir), tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json cannot be used .Expecting property name"):
        Run.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(_config(data_dir).to_dict() | {"__class__": 1}))
    with pytest.raises(ValueError, match="config.json cannot be used .*__class__"):
        Run.load(tmp_path)


def test_a_child_inherits_what_may_change(data_dir, tmp_path):
    run = Run(_config(data_dir), tmp_path, allow_change=("member.seed", "data"))
    assert run.child("x", run.config, seed=0, fold=0).allow_change == ("seed", "data")


def test_no_data_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="run fingerprint_jax.pack"):
        Run(_config(str(tmp_path)), tmp_path).rows("valid")


def test_predictions_are_read_back_and_a_stale_or_damaged_table_is_made_anew(data_dir, tmp_path, caplog):
    config = _config(data_dir)
    config.checkpoint_every = 2
    run = Run(config, tmp_path / "run")
    methods.get("gradient").fit(run)
    first = methods.predict(run, "heldout")
    table = tmp_path / "run" / "predictions" / "heldout.csv"

    def touched(run):
        before = table.stat().st_ino
        np.testing.assert_array_equal(first.ids, methods.predict(run, "heldout").ids)
        return table.stat().st_ino != before

    assert not touched(run)
    table.write_text(table.read_text().replace("0.", "0.1", 1))
    assert touched(run) and "its digest differs" in caplog.text
    np.testing.assert_array_equal(first.scores, methods.predict(run, "heldout").scores)
    assert touched(Run.load(tmp_path / "run", step="2"))  # another step


@pytest.mark.parametrize("path", ["configs/quickstart.py", "configs/subtask1/aimm_siamese.py", "configs/subtask2/aimm_features.py"])
def test_a_work_directory_that_keeps_no_checkpoints_is_refused_before_it_is_made(path, data_dir, tmp_path):
    for name in ("a[1]", "a\\1"):
        with pytest.raises(ValueError, match="checkpoints cannot be read again"):
            fit(path, data_dir, tmp_path / name)
    assert not list(tmp_path.iterdir())
    run = fit("configs/subtask2/residual_svm.py", data_dir, tmp_path / "a[1]")  # it has no checkpoints
    assert len(methods.predict(run, "heldout").ids) and run.done


def test_a_folder_that_is_called_children_makes_no_run_a_child(data_dir, tmp_path):
    config = load_config("configs/subtask2/residual_svm.py")
    config.data_dir = data_dir
    workdir = tmp_path / "study" / "children" / "run"  # of patients, say
    methods.get(config.method).fit(Run(config, workdir))
    assert (workdir / "features").is_dir() and not (tmp_path / "study" / "features").exists()
    assert Run.load(workdir).outermost == workdir
