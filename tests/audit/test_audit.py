"""The whole audit on phantoms: the traps, the verdicts, going on after a stop, and what must change nothing."""

import csv
import fcntl
import hashlib
import json
import os
import re
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import yaml
from absl import flags
from ml_collections import ConfigDict
from PIL import Image
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from fingerprint_jax.audit import __main__ as main
from fingerprint_jax.audit import gate, network, panel, sentences, settings, stages, verdict
from fingerprint_jax.data import phantom
from fingerprint_jax.data.source import Source, open_source
from fingerprint_jax.runtime import files, plugins
from fingerprint_jax.runtime.preemption import Preempted
from tests.audit import documents
from tests.conftest import ROOT, load_config
from tests.data import dicom_files
from tests.foreign import tree

SIZES = {"size": 32, "real": 60, "generated": 80, "unknown": 6, "reference": 100, "slices": 1}
MORE = SIZES | {"generated": 120, "unknown": 60, "reference": 150}  # where the fewer decide nothing


def folders(root, leak=0.0, seed=1, change=lambda name, images: images, sizes=SIZES):
    """Folders of a phantom's images as an auditor has them: {flag: path}."""
    splits = phantom.subtask1(seed, leak=leak, **sizes)
    real = splits["train_real"]
    sides = {"generated": splits["train_generated"].images, "reference": splits["reference"].images}
    sides |= {
        "used": real.images[real.labels == 1],
        "not_used": real.images[real.labels == 0],
        "unknown": splits["test_real"].images[:6],
    }
    for name, images in sides.items():
        (root / name).mkdir(parents=True)
        for i, image in enumerate(change(name, images)):
            Image.fromarray(image).save(root / name / f"{i:04d}.png")
    return {name: root / name for name in sides}


def mosaic(seed):
    """Synthetic images put together of quarters of the used ones: local anatomy is kept, no image is."""
    real = phantom.subtask1(seed, leak=0.0, **SIZES)["train_real"]
    used = real.images[real.labels == 1]

    def change(name, images):
        if name != "generated":
            return images
        rng, half, out = np.random.default_rng(seed), SIZES["size"] // 2, images.copy()
        for y in (0, half):
            for x in (0, half):
                out[:, y : y + half, x : x + half] = used[rng.integers(len(used), size=len(out)), y : y + half, x : x + half]
        return out

    return change


def shuffled(given, root):
    """The same images by other names, in another order, compressed otherwise."""
    rng, renamed = np.random.default_rng(0), {}
    for name, folder in given.items():
        renamed[name] = root / name
        renamed[name].mkdir(parents=True)
        for i, path in zip(rng.permutation(1000), sorted(folder.iterdir()), strict=False):
            Image.open(path).save(root / name / f"x{i}.png", compress_level=1)
    return renamed


def _values(given, output, **options):
    values = flags.FlagValues()
    main.define_flags(values)
    given = {name: path for name, path in given.items()} | {"output": output, "repeats": 0} | options
    values(["audit", *(f"--{name}={value}" for name, value in given.items())])
    return values


def audit(given, output, **options):
    document = main.audit(_values(given, output, **options))
    if not options.get("plan_only"):
        documents.SCHEMA.validate(json.loads((output / "audit.json").read_text()))
    return document


@pytest.fixture(scope="module")
def leaking(tmp_path_factory):
    root = tmp_path_factory.mktemp("leaking")
    given = folders(root / "images", change=mosaic(1))
    return given, root / "audit", audit(given, root / "audit", repeats=20)


def test_local_anatomy_that_was_kept_is_evidence_and_everything_is_written(leaking):
    _, output, document = leaking
    assert document["verdict"]["name"] == verdict.EVIDENCE and document["excess"]["attack"] == "local_match"
    assert document["panel"]["p"] <= 0.05 and document["excess"]["interval"][0] > 0
    assert json.loads((output / "audit.json").read_text()) == json.loads(json.dumps(document))
    assert {kind["kind"] for kind in document["limit"]["kinds"]} >= {"verbatim", "shifted", "blend", "patch"}
    lines = (output / "scores.csv").read_text().splitlines()
    assert lines[0] == "id,gan_leaks,local_match,mosaic,both_directions" and len(lines) == 1 + 2 * SIZES["real"] + 6
    text = (output / "index.html").read_text()
    assert "This audit cannot show the absence of leakage." in text
    # Where the images of the two highest and the two lowest scores are found, each with its best patches.
    scores = {line.split(",")[0]: float(line.split(",")[2]) for line in lines[1:] if "unknown" not in line}
    ranked = sorted(scores, key=lambda name: -scores[name])
    shown = re.findall(r"Image ([^ ]+) with its map", text)
    assert shown == ranked[:2] + ranked[-2:] and text.count("Below it the patch of") > 4


def test_the_plan_is_written_before_any_score_meets_a_label_and_binds(leaking, tmp_path, monkeypatch):
    given, output, document = leaking
    monkeypatch.setattr(stages.Audit, "scores", lambda self: (_ for _ in ()).throw(ValueError("stopped")))
    with pytest.raises(ValueError, match="stopped"):
        audit(given, tmp_path / "b")
    plan = json.loads((tmp_path / "b" / "audit_plan.json").read_text())
    assert plan["methods"] == list(panel.METHODS) and plan["alpha"] == 0.05
    assert plan["options"]["local_match"]["patch"] == 16 and set(plan["verdict"]) == set(verdict.EXIT_STATUS)
    assert hashlib.sha256((output / "audit_plan.json").read_bytes()).hexdigest() == document["plan_hash"]
    with pytest.raises(ValueError, match=r"is the plan of another audit \(seed differ\)"):
        audit(given, output, seed=5, repeats=20)


def test_the_plan_alone_and_its_hash_before_anything_is_done(leaking, tmp_path):
    given, output, document = leaking
    # No patient has several images: the score of one has no part in the plan, which is what it was before there was one.
    assert "patients" not in document["plan"]
    assert audit(given, output, plan_only=True, repeats=20, patient_score="max") == {"plan_hash": document["plan_hash"]}
    assert audit(given, tmp_path / "a", plan_only=True) == {
        "plan_hash": hashlib.sha256((tmp_path / "a" / "audit_plan.json").read_bytes()).hexdigest()
    }
    assert not (tmp_path / "a" / "stages").exists()


def test_other_folders_and_files_that_changed_are_another_audit(leaking, tmp_path):
    given, output, document = leaking
    shutil.copytree(given["not_used"], tmp_path / "other")
    with pytest.raises(ValueError, match="--used: the audit in .* is of .*/used, not .*/other; give that, or another --output"):
        audit(given | {"used": tmp_path / "other"}, output)
    with pytest.raises(ValueError, match="--unknown: the audit in .* is of .*/unknown, not nothing"):
        audit({name: path for name, path in given.items() if name != "unknown"}, output)
    shutil.copytree(output, tmp_path / "audit")
    shutil.copytree(given["used"].parent, tmp_path / "images")
    copied = {name: tmp_path / "images" / name for name in given}
    (tmp_path / "groups.csv").write_text("id,group\n")
    known = main._given(_values(copied, tmp_path / "audit"))
    (tmp_path / "audit" / "folders.json").write_text(json.dumps(known))
    with_slash = {name: f"{path}/" for name, path in copied.items()}
    assert audit(with_slash, tmp_path / "audit", repeats=20)["panel"] == document["panel"]
    (copied["used"] / ".DS_Store").write_text("of a file browser")
    assert main._given(_values(copied, tmp_path / "audit")) == known
    before = known | {"used": [known["used"][0], main._digest(copied["used"], litter=True)]}  # a plan that counts it
    assert before != known
    (tmp_path / "audit" / "folders.json").write_text(json.dumps(before))
    main._check_same(tmp_path / "audit" / "folders.json", known)
    next(copied["reference"].iterdir()).unlink()
    with pytest.raises(ValueError, match="--reference=.*/reference: files have changed since the audit in .* began"):
        audit(copied, tmp_path / "audit", repeats=20)


def test_mistakes_of_the_command_line_name_its_flags(leaking, tmp_path):
    given, output, _ = leaking
    with pytest.raises(ValueError, match="^--used=nowhere: there is no such folder"):
        audit(given | {"used": "nowhere"}, tmp_path / "a")
    with pytest.raises(ValueError, match="^--groups=nowhere.csv: there is no such file"):
        audit(given | {"groups": "nowhere.csv"}, tmp_path / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"^no image in {tmp_path}/empty"):
        audit(given | {"unknown": tmp_path / "empty"}, tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="^--output=.*/file: a file is there"):
        audit(given, tmp_path / "file")
    for text in ("two\nlines", "x" * 201):
        with pytest.raises(ValueError, match="^--requester: use a line of at most 200 characters$"):
            audit(given, tmp_path / "a", requester=text)


@pytest.mark.parametrize(("outer", "inner"), [("generated", "used"), ("used", "generated"), ("not_used", "reference")])
def test_a_folder_in_that_of_another_flag_is_refused(outer, inner, leaking, tmp_path):
    given = dict(leaking[0])
    shutil.copytree(given[outer], tmp_path / outer)
    shutil.copytree(given[inner], tmp_path / outer / inner)
    given |= {outer: tmp_path / outer, inner: tmp_path / outer / inner}
    with pytest.raises(ValueError, match=rf"--\w+={tmp_path}/\S+ and --\w+={tmp_path}/\S+: one lies in the other"):
        audit(given, tmp_path / "audit")
    with pytest.raises(ValueError, match=f"--{inner}=.* and --{outer}=|--{outer}=.* and --{inner}="):
        audit(given | {inner: tmp_path / outer}, tmp_path / "audit")
    assert not (tmp_path / "audit" / "audit_plan.json").exists()


def test_the_plan_goes_by_the_code_of_a_network_that_joins(leaking, tmp_path, monkeypatch):
    config = load_config("configs/subtask1/gan_leaks.py").member
    config.features = ConfigDict({"name": "mypkg.f:feat", "run": "", "output": "embedding", "beside": "", "enhance": "none"})
    source, plans = Source(str(leaking[1] / "data"), "subtask1"), []
    for name, digest in (("a", "1"), ("b", "2"), ("c", "1")):
        monkeypatch.setattr(plugins, "_trusted", {"mypkg": digest})
        (tmp_path / name).mkdir()
        plans.append(stages.Audit(tmp_path / name, source, joins={"likelihood_ratio": config}).plan()[1])
    assert plans[0] == plans[2] != plans[1]
    monkeypatch.setattr(plugins, "_trusted", {"mypkg": "2"})
    with pytest.raises(ValueError, match=r"is the plan of another audit \(options differ\)"):
        stages.Audit(tmp_path / "a", source, joins={"likelihood_ratio": config}).plan()


def test_a_folder_with_files_of_something_else_is_no_audit(leaking, data_dir, tmp_path):
    given, output, _ = leaking
    project = tmp_path / "project"
    shutil.copytree(data_dir, project / "data")  # the data set of a user, where an audit would have its own
    before = tree(project)
    with pytest.raises(ValueError, match="^--output=.*/project is no audit, and 'data' is in it: name an empty folder"):
        audit(given, project, plan_only=True)
    assert tree(project) == before
    shutil.copytree(output, tmp_path / "audit")
    for name in ("data", "stages"):
        shutil.move(tmp_path / "audit" / name, tmp_path / name)
        (tmp_path / "audit" / name).symlink_to(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is a link, and nothing is written through one"):
            audit(given, tmp_path / "audit", plan_only=True)
        (tmp_path / "audit" / name).unlink()
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("lock", "audit.log", ".DS_Store"):
        (begun / name).write_text("")
    audit(given, begun, plan_only=True)
    with pytest.raises(ValueError, match="^--repeats=19: use at least 20, or 0"):
        audit(given, output, repeats=19)
    with (output / "lock").open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="process .* is auditing there; wait for it, or use another --output"):
            audit(given, output, repeats=20)


def test_the_same_command_goes_on_and_does_nothing_twice(leaking, monkeypatch):
    given, output, document = leaking
    monkeypatch.setattr(stages.panel, "scores", lambda *arguments: pytest.fail("computed again"))
    monkeypatch.setattr(stages.copies, "find", lambda *arguments, **options: pytest.fail("computed again"))
    again = audit(given, output, repeats=20)
    changing = ("seconds", "date")
    assert {k: v for k, v in again.items() if k not in changing} == {k: v for k, v in document.items() if k not in changing}


def test_a_swap_of_the_labels_is_the_wrong_direction(tmp_path):
    given = folders(tmp_path / "images", seed=2, change=mosaic(2))
    given |= {"used": given["not_used"], "not_used": given["used"]}
    document = audit(given, tmp_path / "audit")
    assert document["verdict"]["name"] == verdict.WRONG_DIRECTION
    assert "check labels and split" in document["verdict"]["reasons"][0]


@pytest.mark.parametrize("trap", ["brighter", "compressed"])
def test_a_content_trap_is_a_difference_that_content_explains(trap, tmp_path):
    def change(name, images):
        if name not in ("used", "generated"):
            return images
        if trap == "brighter":
            return np.clip(images.astype(int) + 4, 0, 255).astype(np.uint8)
        out = []
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / f"{name}{i}.jpg", quality=40)
            out.append(np.asarray(Image.open(tmp_path / f"{name}{i}.jpg")))
        return np.stack(out)

    document = audit(folders(tmp_path / "images", seed=3, change=change, sizes=MORE), tmp_path / "audit")
    assert document["verdict"]["name"] == verdict.CONTENT and document["panel"]["p"] <= 0.05
    assert document["excess"]["control"] in ("intensity", "texture")


@pytest.mark.parametrize("half", [False, True])
def test_images_that_lie_mirrored_are_no_evidence(half, tmp_path):
    """No leak: used and synthetic images are mirrored, and half of the reference where the verdict is not about look-alikes."""

    def change(name, images):
        mirrored = images[..., ::-1]
        if name == "reference" and half:
            return np.concatenate([images[::2], mirrored[1::2]])
        return mirrored if name in ("used", "generated") else images

    document = audit(folders(tmp_path / "images", change=change, sizes=MORE), tmp_path / "audit")
    attacks = {line["name"]: line["auc"] for line in document["panel"]["methods"]}
    of_content = {line["name"]: line["auc"] for line in document["controls"]["content"]}
    assert document["panel"]["p"] <= 0.05 and attacks["local_match"] > 0.8
    assert document["verdict"]["name"] == verdict.CONTENT and of_content["layout"] > 0.95
    assert document["excess"]["interval"][0] <= 0 and bool(document["copies"]["flagged"]) == (not half)
    assert ("look at each pair" in document["verdict"]["reasons"][-1]) == (not half)


def test_a_reference_of_another_kind_makes_no_copies(tmp_path):
    """No leak, and used images as the others: all but the reference are mirrored, or it has noise."""

    def mirrored(name, images):
        return images if name == "reference" else images[..., ::-1]

    def noisy(name, images):
        noise = np.random.default_rng(0).normal(0, 16, images.shape)
        return np.clip(images + noise, 0, 255).astype(np.uint8) if name == "reference" else images

    for change in (mirrored, noisy):
        given = folders(tmp_path / change.__name__, change=change)
        document = audit(given, tmp_path / f"audit of {change.__name__}")
        classes = {line["class"] for line in document["copies"]["flagged"]}
        assert classes >= {"used", "not_used"} and len(document["copies"]["flagged"]) > 40
        found = {line["name"]: line["auc"] for line in document["copies"]["against_reference"]}
        assert set(found) == {"used", "not_used"} and min(found.values()) > 0.95  # 6 unknown ones are too few
        assert document["verdict"]["name"] in (verdict.CANNOT_TELL, verdict.CONTENT)
        assert "look at each pair" in document["verdict"]["reasons"][-1]
        assert "may be copied: see Copies." in document["verdict"]["sentence"]


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """An audit of synthetic images among which three of the used ones stand."""
    root = tmp_path_factory.mktemp("copied")

    def change(name, images):
        if name == "generated":
            images = images.copy()
            images[[5, 60]], images[100] = used[[3, 17]], np.roll(used[9], (1, -2), axis=(0, 1))
        return images

    sizes = MORE | {"real": 20, "reference": 500, "unknown": 2}
    real = phantom.subtask1(4, leak=0.0, **sizes)["train_real"]
    used = real.images[real.labels == 1]
    given = folders(root / "images", seed=4, change=change, sizes=sizes)
    return given, root / "audit", audit(given, root / "audit")


def test_copies_are_named(copied):
    _, _, document = copied
    flagged = {line["id"]: line["match"] for line in document["copies"]["flagged"]}
    assert flagged == {"real_used/0003": "0005", "real_used/0017": "0060", "real_used/0009": "0100"}
    assert document["verdict"]["name"] == verdict.COPIES


def ended(made, output, monkeypatch, **options):
    """The exit status of an audit that goes on in a copy of its output, so that nothing is computed again."""
    if not output.exists():
        shutil.copytree(made[1], output)
    for module, name in ((main, "show_log"), (main.preemption, "stop_at_once")):
        monkeypatch.setattr(module, name, lambda: None)
    monkeypatch.setattr(stages.panel, "scores", lambda *arguments: pytest.fail("computed again"))
    try:
        main.main(_values(made[0], output, **options))
    except SystemExit as stop:
        return stop.code
    return 0


def test_a_gate_fails_a_build_with_copies_and_passes_one_without(leaking, copied, tmp_path, monkeypatch, capsys):
    junit = tmp_path / "junit.xml"
    assert ended(copied, tmp_path / "copied", monkeypatch, fail_on="copies", junit=junit) == gate.FAILED == 10
    assert "gate: failed: copies (copies found; " in capsys.readouterr().out
    assert [case.get("name") for case in ET.parse(junit).iter("testcase") if case.find("failure") is not None] == ["copies"]
    # No image of this one stands among the synthetic ones, and its verdict is another.
    assert ended(leaking, tmp_path / "leaking", monkeypatch, repeats=20, json=True, fail_on="copies", junit=junit) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)["verdict"] == leaking[2]["verdict"] and "gate: passed" in found.err
    assert not list(ET.parse(junit).iter("failure"))


def test_without_a_gate_the_exit_status_is_what_it_was(copied, tmp_path, monkeypatch, capsys):
    assert ended(copied, tmp_path / "copied", monkeypatch) == 0
    capsys.readouterr()
    assert ended(copied, tmp_path / "copied", monkeypatch, json=True) == 14
    assert json.loads(capsys.readouterr().out)["verdict"] == copied[2]["verdict"]


def test_the_limit_of_an_audit_passes_a_gate_or_fails_it(leaking):
    limit = leaking[2]["limit"]
    found = [point for kind in limit["kinds"] for point in kind["points"] if point["power"] >= 0.8]
    assert sentences.trusted(limit, 0.05) and {point["images"] / limit["used"] for point in found} == {
        12 / 25
    }  # 1 in 2 by the page
    assert gate.failures(leaking[2], [], 0.5) == {}
    assert gate.failures(leaking[2], ["evidence"], 0.4).keys() == {"evidence", "limit"}


def test_the_flags_that_are_written_repeat_the_audit(leaking, tmp_path, monkeypatch):
    given, output, document = leaking
    monkeypatch.chdir(tmp_path)  # paths are written from the root
    known = main._own_flags()
    argv = settings.expanded(["audit", f"--config={output / 'audit.yaml'}"], known)
    values = main._own_flags()
    values(argv)
    monkeypatch.setattr(stages.panel, "scores", lambda *arguments: pytest.fail("computed again"))
    again = main.audit(values)
    assert {name: again[name] for name in ("panel", "limit", "command")} == {
        name: document[name] for name in ("panel", "limit", "command")
    }
    assert yaml.safe_load((output / "audit.yaml").read_text()) == {
        **{name: str(path) for name, path in given.items()},
        **{"output": str(output), "image_size": 0, "seed": 0, "repeats": 20, "patient_score": "mean"},
    }


def test_a_release_has_the_page_and_the_results_without_a_name_or_a_path(copied, tmp_path):
    given, output, before = copied[0], shutil.copytree(copied[1], tmp_path / "audit"), copied[2]
    about = {"generator_name": f"the one in {tmp_path}", "requester": "a board"}
    document = main.audit(_values(given, output, release=tmp_path / "release", fail_on="copies", **about))
    assert document["copies"] == before["copies"]  # what stays with the user is as it was
    assert {path.name for path in (tmp_path / "release").iterdir()} == {"index.html", "audit.json", "audit.yaml"}
    found = json.loads((tmp_path / "release" / "audit.json").read_text())
    documents.SCHEMA.validate(found)
    assert document["about"] == about and found["about"] == {"generator_name": "", "requester": "a board"}
    for line, own in zip(found["copies"]["flagged"], document["copies"]["flagged"], strict=True):
        image = given["used"] / f"{own['id'].removeprefix('real_used/')}.png"
        assert line["id"] == hashlib.sha256(np.asarray(Image.open(image)).tobytes()).hexdigest()
        image = given["generated"] / f"{own['match']}.png"
        assert line["match"] == hashlib.sha256(np.asarray(Image.open(image)).tobytes()).hexdigest()
        assert line["group"] in "123" and line["p"] == own["p"]
    for path in (tmp_path / "release").iterdir():
        text = path.read_text()
        assert str(tmp_path) not in text and str(given["used"].parent) not in text and "data:image" not in text, path
        assert "real_used/" not in text and not re.search(r"\b0\d{3}\b", text), path
    assert yaml.safe_load((tmp_path / "release" / "audit.yaml").read_text()) == {
        **{"image_size": 0, "seed": 0, "repeats": 0, "patient_score": "mean", "fail_on": ["copies"], "requester": "a board"}
    }
    (tmp_path / "release" / "0001.png").write_bytes(b"")
    with pytest.raises(ValueError, match="--release=.* is handed on, and '0001.png' is in it: name an empty folder"):
        main.audit(_values(given, output, release=tmp_path / "release"))
    with pytest.raises(ValueError, match="^--release=.*one lies in the other"):
        main.audit(_values(given, output, release=output / "release"))
    with pytest.raises(ValueError, match="^--junit=.* is in --used=.*: name a place elsewhere"):
        main.audit(_values(given, output, fail_on="copies", junit=given["used"] / "junit.xml"))


def test_names_order_and_lossless_re_encoding_change_nothing_but_what_they_say(leaking, tmp_path):
    given, _, document = leaking
    again = audit(shuffled(given, tmp_path / "images"), tmp_path / "audit", repeats=20)
    assert again["panel"] == document["panel"] and again["limit"] == document["limit"]
    assert again["controls"]["replaced"] == document["controls"]["replaced"]
    assert again["copies"]["against_reference"] == document["copies"]["against_reference"]
    found = []
    for output in (leaking[1], tmp_path / "audit"):
        parts = stages.Audit(output, open_source(str(output / "data"), "subtask1"))
        asked = np.concatenate([parts.sides["real"].pixels, parts.sides["unknown"].pixels])
        columns = np.array(list(json.loads((output / "stages" / "panel.json").read_text())["found"].values()))
        found.append({image.tobytes(): columns[:, i] for i, image in enumerate(asked)})
    assert found[0].keys() == found[1].keys()
    for pixels, scores in found[0].items():
        np.testing.assert_allclose(found[1][pixels], scores, atol=1e-6)


def test_too_few_images_and_a_missing_reference(leaking, tmp_path):
    given, _, _ = leaking
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(given["used"].iterdir())[:10]:
        shutil.copy(path, few)
    document = audit(given | {"used": few}, tmp_path / "a")
    assert document["verdict"]["name"] == verdict.CANNOT_TELL
    assert document["verdict"]["reasons"] == ["10 patients or images are used: at least 20 are needed"]
    lines = [f"reference,{i:04d},{'p' * (1 + i % 19)}" for i in range(SIZES["reference"])]
    (tmp_path / "groups.csv").write_text("\n".join(["split,id,group", *lines]))
    document = audit(given | {"groups": tmp_path / "groups.csv"}, tmp_path / "c")
    many = f"{SIZES['generated']} different synthetic images and 19 reference patients or images: at least 20 of each are needed"
    assert document["verdict"]["reasons"] == [many] and not (tmp_path / "c" / "stages").exists()
    without = {name: path for name, path in given.items() if name != "reference"}
    document = audit(without, tmp_path / "b")
    assert document["counts"]["not_used"] == document["counts"]["reference"] == SIZES["real"] // 2
    assert document["reference_from"] == "half of not_used" and "reason" not in document["panel"]


@pytest.mark.parametrize("flat", [True, False])
def test_many_copies_of_one_image_are_no_synthetic_set(flat, leaking, tmp_path):
    given, _, _ = leaking
    image = np.full((SIZES["size"],) * 2, 128, np.uint8)
    if not flat:
        image[8:20, 8:24] = np.random.default_rng(0).integers(0, 255, (12, 16), dtype=np.uint8)
    (tmp_path / "one").mkdir()
    for i in range(60):
        Image.fromarray(image).save(tmp_path / "one" / f"{i}.png")
    document = audit(given | {"generated": tmp_path / "one"}, tmp_path / "audit")
    assert document["verdict"]["name"] == verdict.CANNOT_TELL
    (reason,) = document["verdict"]["reasons"]
    assert reason.startswith(f"{0 if flat else 1} different synthetic images and {SIZES['reference']} reference")


def dicom(given, root, patients):
    """The same images as series of CT: each of `patients` has as many slices, whose names tell theirs."""
    for k, name in enumerate(("used", "not_used", "reference", "unknown")):
        for i, path in enumerate(sorted(given[name].iterdir())):
            patient = 1000 * k + i % patients
            found = dicom_files.dataset(np.asarray(Image.open(path)).astype(np.uint16) * 4 + 1024, patient, number=i, depth=i)
            dicom_files.save(root / name / f"Zwetschgen{patient}" / f"{i}", found)
    return given | {name: root / name for name in ("used", "not_used", "reference", "unknown")}


def test_series_of_dicom_go_to_a_page_with_patients_and_without_names(leaking, tmp_path, capfd, caplog):
    given = dicom(leaking[0], tmp_path / "images", patients=30)
    bad = dicom_files.dataset(np.zeros((4, 32, 32), np.uint16), 7, PhotometricInterpretation="RGB")
    dicom_files.save(given["used"] / "Zwetschgen7" / "bad", bad)
    options = {"salt": tmp_path / "salt", "window": "510,1020"}
    document = audit(given, tmp_path / "audit", **options)
    assert document["counts"]["groups"] == 60 and document["counts"]["without_patient"] == 0
    assert document["copies"]["reference_groups"] == 30 and document["verdict"]["patients"] == ""
    assert document["window"] == "510,1020" and f"--salt={tmp_path}/salt" in document["command"]
    assert document["rejected"] == {"used": [1, 61]}
    # The pixels are those of the PNG files, and so are the scores.
    before, now = (Source(str(path / "data"), "subtask1") for path in (leaking[1], tmp_path / "audit"))
    for split in ("train_real", "reference"):
        assert (before.digests(before.rows(split).index) == now.digests(now.rows(split).index)).all()
    # Each patient has one score, the mean of those of two slices.
    with (leaking[1] / "scores.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["id"].startswith("real_")]
    means = {}
    for label in ("real_used/", "real_not_used/"):
        of = [row for row in rows if row["id"].startswith(label)]
        means[label] = [[row for row in of if int(row["id"][-4:]) % 30 == patient] for patient in range(30)]
    for line in document["panel"]["methods"]:
        scores = [
            np.mean([float(row[line["name"]]) for row in slices]) for slices in (*means["real_used/"], *means["real_not_used/"])
        ]
        assert line["auc"] == pytest.approx(roc_auc_score([1] * 30 + [0] * 30, scores), abs=1e-9)
    assert document["plan"]["patients"]["score"] == "mean" and document["counts"]["used_patients"] == 30
    page = (tmp_path / "audit" / "index.html").read_text()
    assert "60 used images of 30 patients, 60 not used images of 30 patients" in page
    with pytest.raises(ValueError, match=r"is the plan of another audit \(patients differ\)"):
        audit(given, tmp_path / "audit", **options, patient_score="max")
    assert "DICOM and NIfTI with --window=510,1020 and --slices=all." in page
    said = "".join(capfd.readouterr()) + caplog.text
    salt = (tmp_path / "salt").read_text().strip()
    files = {path: path.read_bytes() for path in (tmp_path / "audit").rglob("*") if path.is_file()}
    of_patients = [text for patient in (0, 7, 1003) for text in dicom_files.secrets(patient).values()]
    for text in (*of_patients, "Zwetschgen", "1.2.826.0.1.3680043", salt):
        assert [path for path, content in files.items() if text.encode() in content or text in path.name] == []
        assert text not in said
    with pytest.raises(ValueError, match="--window: the audit in .* is of 510,1020, not lung"):
        audit(given, tmp_path / "audit", **options | {"window": "lung"})
    with pytest.raises(ValueError, match="^--salt=.* is in .*, which is handed on"):
        audit(given, tmp_path / "audit", **options | {"salt": tmp_path / "audit" / "salt"})


def test_files_that_cannot_be_used_are_counted_by_folder(leaking, tmp_path):
    given, _, _ = leaking
    shutil.copytree(given["used"], tmp_path / "used")
    for i in range(5):
        (tmp_path / "used" / f"bad{i}.png").write_bytes(b"no image")
    for i in range(3):
        (tmp_path / "used" / f"notes{i}.txt").write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"^rejected: 5 of 65 images in {tmp_path}/used: more than 0.05 of a folder"):
        audit(given | {"used": tmp_path / "used"}, tmp_path / "audit")
    os.symlink(tmp_path / "used", tmp_path / "other")  # a plan goes on under another name of the folder
    audit(given | {"used": tmp_path / "other"}, tmp_path / "audit", max_rejected=0.1, plan_only=True)
    document = audit(given | {"used": tmp_path / "used"}, tmp_path / "audit", max_rejected=0.1)
    assert document["rejected"] == {"used": [5, 65]} and "--max_rejected=0.1" in document["command"]
    assert document["counts"]["used"] == 60
    page = (tmp_path / "audit" / "index.html").read_text()
    assert "Of 65 files in the folder of real images given as used 5 could not be used" in page
    assert "Whether the rest stands for the folder" in page


@pytest.mark.parametrize(
    ("id", "patient"),
    [("train_real,real_used/0003", "p1"), ("train_real,real_not_used/0003", "0007"), ("test_real,0003", "0007")],
)
def test_a_reference_of_patients_that_are_asked_about_is_refused(id, patient, leaking, tmp_path):
    given, _, _ = leaking
    (tmp_path / "groups.csv").write_text(f"split,id,group\n{id},{patient}\nreference,0007,{patient}\n")
    with pytest.raises(ValueError, match="reference: leave out 1 images of patients that are asked about"):
        audit(given | {"groups": tmp_path / "groups.csv"}, tmp_path / "audit")


@pytest.mark.parametrize("pair", [("reference", "not_used"), ("used", "not_used")])
def test_images_in_two_folders_of_real_images_are_counted_and_once_mended_the_same_output_works(pair, leaking, tmp_path):
    given, _, _ = leaking
    shutil.copytree(given[pair[0]], tmp_path / "more")
    for path in sorted(given[pair[1]].iterdir())[:3]:
        shutil.copy(path, tmp_path / "more" / f"again{path.name}")
    given = given | {pair[0]: tmp_path / "more"}
    with pytest.raises(
        ValueError, match="^6 images stand in two folders of real images, the first '.*0000' and '.*0000' are"
    ) as error:
        audit(given, tmp_path / "audit", plan_only=True)
    listed = tmp_path / "audit" / "data" / "fingerprint" / "subtask1" / "1.0.0" / "duplicates.csv"
    assert f"{listed} lists them (kind exact)" in str(error.value)
    with listed.open() as file:
        rows = {row["id"] for row in csv.DictReader(file) if row["kind"] == "exact"}
    assert len(rows) == 6
    for path in (tmp_path / "more").glob("again*"):
        path.unlink()
    assert audit(given, tmp_path / "audit", plan_only=True)["plan_hash"]


def test_without_a_plan_other_folders_and_sizes_take_the_same_output(leaking, tmp_path):
    given, _, _ = leaking
    inside = given["generated"] / "out"
    with pytest.raises(ValueError, match=f"--output={inside} is in --generated="):
        audit(given, inside, plan_only=True)
    assert not inside.exists()
    with pytest.raises(ValueError, match="images of 4x4 pixels: at least"):
        audit(given, tmp_path / "audit", image_size=4, plan_only=True)
    with pytest.raises(ValueError, match="none of its ids is that of an image"):
        (tmp_path / "groups.csv").write_text("id,group\nused/0001,p\n")
        audit(given | {"groups": tmp_path / "groups.csv"}, tmp_path / "audit", plan_only=True)
    before = audit(given, tmp_path / "audit", plan_only=True)
    with pytest.raises(ValueError, match="--image_size: the audit in .* is of nothing, not 16"):
        audit(given, tmp_path / "audit", image_size=16, plan_only=True)
    with pytest.raises(ValueError, match="--bits: the audit in .* is of nothing, not 12"):
        audit(given, tmp_path / "audit", bits=12, plan_only=True)
    shutil.rmtree(tmp_path / "audit" / "data")
    assert audit(given, tmp_path / "audit", plan_only=True) == before


def test_blank_images_have_no_part_and_are_counted(leaking, tmp_path):
    given, _, document = leaking
    shutil.copytree(given["used"].parent, tmp_path / "images")
    given = {name: tmp_path / "images" / name for name in given}
    for path in given.values():
        for k in range(2):
            Image.new("L", (SIZES["size"],) * 2).save(path / f"blank{k}.png")
    found = audit(given, tmp_path / "audit")
    assert found["panel"] == document["panel"] and found["copies"]["flagged"] == document["copies"]["flagged"]
    assert found["counts"]["blank"] == 10 and found["counts"]["duplicates"] == document["counts"]["duplicates"]
    assert found["counts"]["used"] == SIZES["real"]
    assert (
        "images that show nothing, as at the ends of a volume, which are left out"
        in (tmp_path / "audit" / "index.html").read_text()
    )


def test_images_without_a_patient_and_ids_without_an_image_are_counted(leaking, tmp_path):
    given, _, document = leaking
    names = [f"real_used/{i:04d}" for i in range(10)] + ["real_used/none", "x"]
    (tmp_path / "groups.csv").write_text("\n".join(["id,group", *(f"{name}.png,p{name[-4:]}" for name in names)]))
    found = audit(given | {"groups": tmp_path / "groups.csv"}, tmp_path / "audit")
    real = sum(document["counts"][name] for name in ("used", "not_used", "unknown", "reference"))
    assert found["counts"]["unmatched_ids"] == 2 and found["counts"]["without_patient"] == real - 10
    lacks = f"each of {real - 10:,} of the {real:,} real images was taken for a patient of its own"
    assert lacks in found["verdict"]["patients"] and lacks in (tmp_path / "audit" / "index.html").read_text()
    none = "No table of patients was given (--groups): every real image was taken for a patient of its own."
    assert document["verdict"]["patients"].startswith(none)
    page = (tmp_path / "audit" / "index.html").read_text()
    assert "ids of the table of patients that match no image" in page and "real images whose patient is not known" in page


BOTH = {name: f"{ROOT}/configs/subtask1/{name}.py:smoke" for name in network.ATTACKS}
JOINED = (*network.ATTACKS, network.COMBINED)


def in_pairs(folder, path):
    """A table by which two images of a reference, one after the other, are of one patient: path."""
    ids = [f"reference,{image.stem},p{i // 2}" for i, image in enumerate(sorted(folder.iterdir()))]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["split,id,group", *ids]))
    return path


@pytest.fixture(scope="module")
def joined(leaking, tmp_path_factory):
    """The leaking phantom again, with patients in the reference and the networks in the panel."""
    root = tmp_path_factory.mktemp("joined")
    given = leaking[0] | {"groups": in_pairs(leaking[0]["reference"], root / "groups.csv")}
    return root / "audit", audit(given, root / "audit", **BOTH)


def test_networks_join_the_panel_on_request(leaking, joined):
    output, document = joined
    assert document["plan"]["methods"] == [*panel.METHODS, *JOINED]
    for name, path in BOTH.items():
        assert document["plan"]["options"][name]["member.objective.name"] == name
        assert f"--{name}={path.partition(':')[0]}" in document["command"]
    before = {line["name"]: line["auc"] for line in leaking[2]["panel"]["methods"]}
    after = {line["name"]: line["auc"] for line in document["panel"]["methods"]}
    assert {name: after[name] for name in before} == before  # the others are as they were
    assert set(after) == {*before, *JOINED}
    assert {line["name"] for line in document["controls"]["replaced"]} == set(after)
    with (output / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * SIZES["real"] + 6
    page = (output / "index.html").read_text()
    for name in network.ATTACKS:
        assert len({row[name] for row in rows}) > SIZES["real"]
        assert f"{name.replace('_', ' ')}: {network.WORDS[name]}" in page
    assert "combined" in page


def test_combined_is_the_mean_of_the_ranks(joined):
    stage = json.loads((joined[0] / "stages" / "panel.json").read_text())["found"]
    parts = np.array([stage[name] for name in (*panel.OPTIONS, *network.ATTACKS)])[:, : 2 * SIZES["real"]]
    expected = np.mean([rankdata(part) for part in parts], axis=0)
    np.testing.assert_allclose(stage["combined"][: 2 * SIZES["real"]], expected)


def test_the_scores_of_networks_know_neither_names_nor_order(leaking, joined, tmp_path):
    given = shuffled(leaking[0], tmp_path / "images")
    of_pixels = {Image.open(path).tobytes(): i // 2 for i, path in enumerate(sorted(leaking[0]["reference"].iterdir()))}
    ids = [f"reference,{path.stem},x{of_pixels[Image.open(path).tobytes()]}y" for path in given["reference"].iterdir()]
    (tmp_path / "groups.csv").write_text("\n".join(["split,id,group", *ids]))
    other = audit(given | {"groups": tmp_path / "groups.csv"}, tmp_path / "audit", **BOTH)
    assert [line["auc"] for line in other["panel"]["methods"]] == [line["auc"] for line in joined[1]["panel"]["methods"]]


def test_images_of_a_network_that_are_not_those_of_the_audit_are_refused(tmp_path, monkeypatch):
    def stopped(run):
        raise Preempted("as by a signal")

    monkeypatch.setattr(network.methods, "fit", stopped)
    real, generated, reference, other = np.random.default_rng(0).integers(0, 256, (4, 6, 16, 16), np.uint8)
    joins, nobody = {"likelihood_ratio": load_config("configs/subtask1/likelihood_ratio.py")}, np.full(6, "")
    for _ in range(2):  # what was packed is taken as it is
        with pytest.raises(Preempted):
            network.scores(tmp_path / "panel", joins, real, generated, reference, nobody, 0)
    with pytest.raises(ValueError, match="panel: the packed images of reference are not those of this audit"):
        network.scores(tmp_path / "panel", joins, real, generated, other, nobody, 0)


def test_a_config_that_reads_labels_joins_no_panel(leaking, tmp_path):
    with pytest.raises(ValueError, match="--likelihood_ratio: the config reads images that are asked about"):
        audit(leaking[0], tmp_path / "audit", likelihood_ratio=f"{ROOT}/configs/subtask1/aimm_siamese.py:smoke")
    with pytest.raises(ValueError, match="--reidentification: a config of subtask2"):
        audit(leaking[0], tmp_path / "audit", reidentification=f"{ROOT}/configs/quickstart.py:smoke")
    with pytest.raises(ValueError, match=r"audit\[1\]/' has '\['"):
        audit(leaking[0], tmp_path / "audit[1]", likelihood_ratio=BOTH["likelihood_ratio"])
    assert not (tmp_path / "audit[1]").exists()
    assert not (tmp_path / "audit").exists()


def test_a_reference_without_patients_is_refused_before_there_is_a_plan(leaking, tmp_path):
    only = {"reidentification": BOTH["reidentification"]}
    with pytest.raises(
        ValueError, match=r"--reidentification .*two images or more: there are 0, at least 20 are needed \(--groups\)"
    ):
        audit(leaking[0], tmp_path / "audit", **only)
    assert not (tmp_path / "audit" / "audit_plan.json").exists()
    groups = in_pairs(leaking[0]["reference"], tmp_path / "groups.csv")  # given now, the same command goes on
    assert len(audit(leaking[0] | {"groups": groups}, tmp_path / "audit", plan_only=True, **only)["plan_hash"]) == 64


def test_where_too_few_patients_are_left_phantoms_are_the_control(joined, tmp_path, monkeypatch):
    """A network that learns from patients must have some to learn from when half of the reference plays the synthetic images."""
    joins = {"reidentification": load_config("configs/subtask1/reidentification.py")}
    parts = stages.Audit(tmp_path, Source(str(joined[0] / "data"), "subtask1"), joins=joins)
    groups, given = parts.sides["reference"].groups, []
    monkeypatch.setattr(parts, "likeness", (None, None), raising=False)
    monkeypatch.setattr(stages.Images, "views", None)
    monkeypatch.setattr(stages.panel, "compare", lambda *sides: np.zeros((2 * SIZES["real"], len(panel.METHODS))))
    monkeypatch.setattr(parts, "_networks", lambda part, real, *sides: given.append(sides) or np.zeros((len(real), 1)))
    for whole, by, left in ((True, "matched reference images", 50), (False, "phantoms", 100)):
        patients = np.unique(groups)[:25]
        half = np.isin(groups, patients) if whole else np.isin(np.arange(100), np.unique(groups, return_index=True)[1])
        monkeypatch.setattr(stages.stand_ins, "most_alike", lambda likeness, units, half=half: half)
        assert parts.replaced()["replaced_by"] == by and len(given[-1][1]) == left


def test_files_that_stand_in_their_folder_four_times_are_one_observation(tmp_path):
    small = SIZES | {"real": 25, "generated": 60, "unknown": 2, "reference": 60}

    def four_times(name, images):
        return np.repeat(images, 4, axis=0) if name in ("used", "not_used") else images

    once = audit(folders(tmp_path / "once", seed=2, sizes=small), tmp_path / "a")
    more = audit(folders(tmp_path / "more", seed=2, sizes=small, change=four_times), tmp_path / "b")
    assert (once["counts"]["used"], more["counts"]["used"]) == (25, 100) and more["counts"]["groups"] == once["counts"]["groups"]
    assert 0.05 < once["panel"]["p"] == more["panel"]["p"]
    for a, b in zip(once["panel"]["methods"], more["panel"]["methods"], strict=True):
        # Of the 25 x 25 pairs rounding may decide one: blocks of another size are summed up in another order.
        assert b["auc"] == pytest.approx(a["auc"], abs=1 / 25**2) and b["interval"] == pytest.approx(a["interval"], abs=0.03)


def test_a_part_that_was_changed_is_computed_again(leaking, tmp_path, caplog):
    given, output, document = leaking
    shutil.copytree(output, tmp_path / "copy")
    stages_of = tmp_path / "copy" / "stages"
    primary = json.loads((stages_of / "primary.json").read_text())
    forged = primary | {"found": primary["found"] | {"p": 0.9}}
    (stages_of / "primary.json").write_text(json.dumps(forged))
    other = primary | {"plan": "0" * 64}
    (stages_of / "excess.json").write_text(json.dumps(other | {"seal": stages.files.seal(other)}))
    (stages_of / "content.json").write_text("{")
    lines = (stages_of / "limit_points.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    first[1]["detected"] = 77
    (stages_of / "limit_points.jsonl").write_text("\n".join([json.dumps(first), "[]", *lines[1:]]) + "\n")
    (stages_of / "limit.json").unlink()
    again = audit(given, tmp_path / "copy", repeats=20)
    for part in ("panel", "excess", "controls", "limit", "verdict"):
        assert again[part] == document[part]
    assert "primary.json is not as this audit wrote it" in caplog.text and "content.json cannot be used" in caplog.text


def test_records_of_other_images_are_not_audited_under_the_fingerprints_of_the_plan(leaking, tmp_path):
    output = shutil.copytree(leaking[1], tmp_path / "output")
    place = "data/fingerprint/subtask1/1.0.0"
    audit(folders(tmp_path / "other", seed=7), tmp_path / "another", plan_only=True)
    for file in (tmp_path / "another" / place).glob("*train_real*"):
        shutil.copy(file, output / place)
    summary = json.loads((output / place / "summary.json").read_text()) | {"files": {}}
    (output / place / "summary.json").write_text(json.dumps(summary | {"seal": files.seal(summary)}))
    with pytest.raises(ValueError, match="the records of train_real are not those that summary.json describes"):
        audit(leaking[0], output)


@pytest.mark.parametrize("name", ["audit_plan.json", "folders.json", "DATA/duplicates.csv", "DATA/rejected.csv"])
def test_files_of_an_audit_that_are_none_are_one_line(name, leaking, tmp_path):
    output = shutil.copytree(leaking[1], tmp_path / "output")
    place = output / "data" / "fingerprint" / "subtask1" / "1.0.0"
    summary = json.loads((place / "summary.json").read_text()) | {"files": {}}
    (place / "summary.json").write_text(json.dumps(summary | {"seal": files.seal(summary)}))
    path = output / name.replace("DATA", str(place))
    path.write_text("a,b\n1,2\n" if name.endswith("csv") else "[]")
    with pytest.raises(ValueError, match=path.name):
        audit(leaking[0], output, repeats=20)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{path.name}.*a pipe, expected a file"):
        audit(leaking[0], output, repeats=20)
    (output / "seconds.json").write_text("[]")
    assert stages.seconds(output) == {}


def test_a_folder_that_is_no_audit_and_one_with_links_are_left_as_they_are(leaking, tmp_path):
    given, output, _ = leaking
    project = tmp_path / "project"
    shutil.copytree(output / "data", project / "data")  # what pack wrote there
    before = sorted(project.rglob("*"))
    with pytest.raises(ValueError, match="project is no audit, and 'data' is in it: name an empty folder, or a new one"):
        audit(given, project)
    assert sorted(project.rglob("*")) == before
    shutil.copytree(output, tmp_path / "copy")
    (tmp_path / "copy" / "audit_plan.json").unlink()
    for name in ("data", "data/fingerprint", "stages"):
        shutil.move(tmp_path / "copy" / name, tmp_path / "mine")
        (tmp_path / "copy" / name).symlink_to(tmp_path / "mine")
        with pytest.raises(ValueError, match=f"copy/{name} is a link, and nothing is written through one"):
            audit(given, tmp_path / "copy")
        (tmp_path / "copy" / name).unlink()
        shutil.move(tmp_path / "mine", tmp_path / "copy" / name)


def test_a_list_of_folders_that_is_another_program_s_makes_no_audit(tmp_path):
    (tmp_path / "folders.json").write_text('{"inbox": 3}')
    with pytest.raises(ValueError, match="folders.json cannot be used .*'image_size' is missing.*: give another --output"):
        main.files.refuse_foreign(tmp_path, "audit", main.KNOWN, {"image_size": int}, main.OTHER)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("folders.json", "[]", "folders.json cannot be used .*: give another --output"),
        ("folders.json", '{"image_size": 0, "generated": []}', "--generated: the audit in .* is of nothing"),
        ("audit_plan.json", "[]", "audit_plan.json cannot be used .*: give another --output"),
    ],
)
def test_files_of_an_audit_that_are_not_as_it_wrote_them_are_named(name, content, said, leaking, tmp_path):
    given, output, _ = leaking
    shutil.copytree(output, tmp_path / "copy")
    (tmp_path / "copy" / name).write_text(content)
    (tmp_path / "copy" / "stages" / "excess.json").unlink()
    with pytest.raises(ValueError, match=said):
        audit(given, tmp_path / "copy", repeats=20)
