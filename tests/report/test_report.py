"""The page: what stands on it, what never does."""

import json
import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from fingerprint_jax import evaluate, methods, report
from fingerprint_jax.data import packing, tasks
from fingerprint_jax.evaluation import decide
from fingerprint_jax.runs.config import flat_config
from fingerprint_jax.runs.run import Run
from fingerprint_jax.stats import metrics, permutation, score_metrics
from tests.conftest import load_config
from tests.report.conftest import HOSTILE, Elements, pictures
from tests.report.conftest import report as write
from tests.test_evaluate import run_binary


def sections(page: Elements) -> set[str]:
    return {attributes["id"] for attributes in page.all("h2")}


@pytest.fixture(scope="module")
def page(membership):
    return write(membership, "heldout", "--published")


def test_a_page_stands_alone_and_can_be_read_aloud(page):
    found = Elements(page)
    assert found.all("html")[0]["lang"] == "en"
    assert found.all("meta")[1]["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not found.all("script") and not found.all("link") and not re.search(r"https?:|url\(|@import", page)
    assert sections(found) == {"figures", "care", "scores", "published", "pictures", "made"}
    assert len(found.all("img")) == 24 and all(x["src"].startswith("data:image/png;base64,") and x["alt"] for x in found.all("img"))
    assert all(x.get("aria-label") for x in found.all("svg") if x.get("role") == "img")
    assert all(x["scope"] in ("row", "col") for x in found.all("th"))
    assert len(found.all("caption")) == len(found.all("table"))
    assert [name for name, _ in found.tags if name in ("h1", "h2", "h3")][:2] == ["h1", "h2"]
    assert len(page) < 1_000_000


def test_it_says_what_was_asked_found_and_done(page, membership):
    text = Elements(page).text
    assert "was that image used to train the generator?" in text
    for expected in ("Cohen's kappa", "learned_threshold", "member.objective.margin", "content control", "20"):
        assert expected in text
    assert "Whether that is more than chance is not said: that takes a permutation test" in text  # of a cross-fitted run
    assert f"labels of the others): {permutation.CONDITIONAL}." in text and "conditional on the fits, see below" in text
    assert all(digest in text for digest in membership.source.fingerprints.values())
    assert re.search(r"Written \d{4}-\d\d-\d\d \d\d:\d\d UTC", text)


def test_other_test_images_are_no_other_training(membership, data_dir, packs, tmp_path):
    runs = []
    for data in (data_dir, packs["moved"], packs["other"]):
        with methods.fitting(Run(Run.load(membership.workdir, data_dir=data).config, tmp_path / str(len(runs)))):
            runs.append(Run.load(tmp_path / str(len(runs))))
    assert len({json.dumps(run.provenance["fingerprints"]) for run in runs}) == 3
    first, moved, other = map(report._trained_on, runs)
    assert first == moved != other


def test_figures_of_scores_and_a_permutation_stand_with_the_others():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    scores = labels + rng.normal(size=200)
    found = metrics.report(labels, scores > 0.5, 2)
    found["scores"] = score_metrics.score_report(labels, scores, False)
    found["permutation"] = {"p": 0.001, "reason": None}
    rows = {
        name: (value, interval) for name, value, interval, _ in report._headline(tasks.of("subtask1"), found, ["not used", "used"])
    }
    assert list(rows)[:3] == ["Cohen's kappa", "accuracy", "AUC"]
    low, high = rows["AUC"][1]
    assert low < rows["AUC"][0] == score_metrics.auc(labels, scores) < high
    assert any("true positive rate at a false positive rate of 0.1" in name for name in rows)
    assert rows["p of the AUC, by permutation of the labels"] == (0.001, None)


def test_html_in_names_is_text(page):
    found = Elements(page)
    assert HOSTILE in found.text  # of the images and of the work directory
    assert not any("onerror" in name for _, attributes in found.tags for name in attributes)
    assert all(attributes["src"] != "x" for attributes in found.all("img"))


def test_a_redacted_page_holds_no_image_and_no_name_of_one(page, membership):
    rows = membership.rows("heldout")
    real = {image[..., 0].tobytes() for image in membership.source.images(rows.index)}
    assert len(real & {picture.tobytes() for picture in pictures(page)}) == 4
    redacted = write(membership, "heldout", "--published", "--redact")
    assert not pictures(redacted) and "<img" not in redacted and "data:image" not in redacted
    stems = [name.rpartition(">")[2] for split in membership.source.splits for name in membership.source.rows(split).ids]
    assert not any(stem in Elements(redacted).text for stem in stems if len(stem) > 6)
    assert "a synthetic image can be a copy of a real one" in redacted and "lower quartile" in redacted


def test_without_labels_it_shows_what_was_decided_and_no_figure(membership, attribution):
    for run, split in ((membership, "test_real"), (attribution, "test_generated")):
        found = Elements(write(run, split))
        assert sections(found) == {"decided", "care", "scores", "pictures", "made"}
        assert "are not known: the page shows what was decided, not how often it was right" in found.text
        assert "all images: 20 images" in found.text and "truth unknown" in found.text


def test_attribution_names_the_generator_run_and_pairs_the_second_subset(attribution):
    found = Elements(write(attribution, "heldout"))
    assert "ROC, each class against the rest" in found.text and "the second choice" in found.text
    assert len(found.all("img")) == 24
    assert "Nearest real image of t" in " ".join(x["alt"] for x in found.all("img"))


def test_a_split_that_is_not_asked_about_has_no_pictures(attribution):
    assert "No pictures: train_real of subtask2" in Elements(write(attribution, "train_real")).text


def test_any_labelled_set_has_a_page_without_pictures(phantoms, tmp_path):
    packing.pack("images", str(tmp_path / "data"), str(phantoms["subtask2"] / "train" / "generated"))
    config = load_config("configs/quickstart.py")
    config.task, config.data_dir, config.data.streams = "images", str(tmp_path / "data"), ConfigDict({"train": 8})
    methods.get(config.method).fit(Run(config, tmp_path / "run"))
    run = Run.load(tmp_path / "run")
    assert "the task images has no synthetic side" in Elements(write(run, "heldout")).text
    with pytest.raises(ValueError, match="nothing was published for the task images"):
        write(run, "heldout", "--published")


def test_runs_side_by_side_have_paired_differences(membership, other_membership):
    found = Elements(write(membership, "heldout", f"--compare={other_membership.workdir},{membership.workdir}"))
    assert "on the 40 images that both have" in found.text
    labels = membership.rows("heldout").labels
    decided = [decide.decide(run, "heldout", methods.predict(run, "heldout")) for run in (membership, other_membership)]
    kappa = [metrics.report(labels, d, 2)["cohen_kappa"] for d in decided]
    numbers = [f"{x:.3f}".replace("-", "\N{MINUS SIGN}") for x in (*kappa, kappa[0] - kappa[1])]
    table = found.text.split("Beside other runs")[1]
    assert re.search("kappa" + r"\s*".join(numbers), table)
    assert f"alike on {100 * (decided[0] == decided[1]).mean():.1f}%" in table
    # A run differs from itself by nothing at all.
    assert "alike on 100.0%" in table and table.count("0.0000.000 to 0.000") == 3


def test_runs_that_cannot_be_paired_are_refused_and_the_page_stays(membership, attribution, page, tmp_path):
    before = write(membership, "test_real")
    for other, reason in ((attribution.workdir, "a run of subtask2, .* is one of subtask1"), (tmp_path, "no run there")):
        with pytest.raises(ValueError, match=reason):
            write(membership, "test_real", f"--compare={other}")
    assert (membership.workdir / "report" / "index.html").read_text() == before


def test_a_run_that_is_not_finished_is_not_compared_with(attribution, data_dir, tmp_path):
    config = load_config("configs/subtask2/siamese_vote.py")
    config.data_dir, config.data.folds = data_dir, attribution.config.data.folds
    methods.fit(Run(config, tmp_path / "half"))
    (tmp_path / "half" / "done").unlink()
    with pytest.raises(ValueError, match=f"{tmp_path}/half is not finished, there is nothing to score yet"):
        write(attribution, "heldout", f"--compare={tmp_path / 'half'}")


def test_results_of_another_evaluation_are_on_no_page(membership):
    predictions = methods.predict(membership, "heldout")
    scored = report.Scored(membership, membership.rows("heldout"), predictions, decide.decide(membership, "heldout", predictions))
    results = json.loads((membership.workdir / "results.json").read_text())["splits"]["heldout"]
    with pytest.raises(ValueError, match="another evaluation has written results.json meanwhile, run this one again"):
        report.write(scored, "heldout", results | {"n": results["n"] + 1}, [])


def test_only_images_that_both_have_are_paired(membership, other_membership):
    def scored(run: Run):
        predictions = methods.predict(run, "heldout")
        return report.Scored(run, run.rows("heldout"), predictions, decide.decide(run, "heldout", predictions))

    a, b = scored(membership), scored(other_membership)
    even = np.arange(0, len(b.rows), 2)
    compared = report._compare(a, b.take(even))
    assert compared["n"] == len(even)
    assert compared["agree"] == (a.decided[even] == b.decided[even]).mean()
    with pytest.raises(ValueError, match="no image of the split in common"):
        report._compare(a, b.take(even[:0]))


def test_the_place_among_the_published_runs_comes_with_its_caveat(page, membership, attribution):
    found = Elements(page)
    assert "Other data." in found.text and "beside the 33 published runs" in found.text
    assert page.count('class="other"') == 33
    found = Elements(write(attribution, "test_generated", "--published"))
    assert "this run has no place" in found.text and "Other data." in found.text


@pytest.mark.parametrize("flag", ["--redact", "--published", "--compare=x"])
def test_flags_of_the_page_need_the_page(flag, membership):
    with pytest.raises(ValueError, match=f"{flag.partition('=')[0]} is about the page: add --report"):
        run_binary(evaluate, f"--workdir={membership.workdir}", flag)


def test_a_page_needs_a_run():
    with pytest.raises(ValueError, match="--report is about a run: give --workdir"):
        run_binary(evaluate, "--task=subtask1", "--report")


@pytest.mark.parametrize(
    ("path", "shown", "left_out"),
    [
        ("subtask1/challengers_cluster", {"clusters": "8 (default)", "name": "kmeans"}, ["C", "trees", "measure"]),
        ("subtask1/zoq_cnn_ssim", {"measure": "ssim", "window": "gaussian (default)", "stride": "8 (default)"}, ["patch"]),
        ("subtask1/gan_leaks", {"k": "1 (default)", "calibrated": "True (default)"}, ["window", "clusters"]),
        ("subtask2/residual_svm", {"C": "3.0 (default)"}, ["k"]),
    ],
)
def test_the_page_shows_what_an_estimator_uses_in_the_place_of_none(path, shown, left_out):
    flat = flat_config(load_config(f"configs/{path}.py", ""))
    found = report.settings(flat, 2 if path.startswith("subtask1") else 5)
    assert not any("None" in value for value in found.values())
    section = "member.estimator" if "member.estimator.name" in flat else "estimator"
    assert {option: found[f"{section}.{option}"] for option in shown} == shown
    assert not [option for option in left_out if f"{section}.{option}" in found]


def test_the_page_shows_a_threshold_that_is_learned():
    found = report.settings(flat_config(load_config("configs/subtask1/zhouyijiang_canet.py", "")), 2)
    assert found["decision.params.value"] == "learned" and found["decision.params.confidence"] == "0.6"
    # Of five classes one cluster each, whether that is left out or written as 0; a number that was given is no default.
    for clusters, text in ((None, "5 (default)"), (0, "5 (default)"), (7, "7")):
        flat = {"estimator.name": "kmeans", "estimator.clusters": clusters}
        assert report.settings(flat, 5)["estimator.clusters"] == text
