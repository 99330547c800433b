"""The table of membership: figures of the predictions, a p where no label was read, the controls of copies and unrelated images."""

import json

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from fingerprint_jax.data import packing, phantom
from fingerprint_jax.stats import permutation
from launch import membership, systems, table
from launch.compare import Scored
from launch.systems import Comparison, Row

VIEW = {"data.folds": 2}
LEARNED = {"member.estimator.name": "linear_svm", "member.gallery": {"labelled": ("train_real",)}}
ROWS = [
    Row("gan_leaks", "configs/subtask1/gan_leaks.py", VIEW, networks=0, published="none"),
    Row("learned", "configs/subtask1/gan_leaks.py", VIEW | LEARNED, networks=0, refits=19),
]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two rows on a phantom that copies, with both controls."""
    root = tmp_path_factory.mktemp("membership")
    splits = phantom.subtask1(0, 32, 1.0, real=60, generated=80, unknown=4, reference=60)
    phantom.write(root / "images", "subtask1", splits, 0)
    folders = (root / "images/train", root / "images/test", root / "images/reference")
    packing.pack("subtask1", root / "data", *folders, groups=root / "images/groups.csv")
    comparison = Comparison(root / "out", ROWS, {"d": str(root / "data")}, str(root / "controls"), 1.0, seeds=(0,))
    assert comparison.run(["d"], ROWS, lambda: None) == []
    return comparison


def test_the_figures_are_those_of_the_predictions(compared):
    found = membership.line(compared, "d", ROWS[0], membership.family(compared, "d"))
    one = Scored.load(compared.workdir("d", ROWS[0], None, 0), "heldout")
    assert found["auc"] == pytest.approx(roc_auc_score(one.labels, one.scores[:, 0])) and found["auc"] > 0.9
    assert found["cohen_kappa"] == pytest.approx(cohen_kappa_score(one.labels, one.predicted))
    assert found["low"] < found["auc"] <= found["high"] and found["tpr_low"] <= found["tpr"] <= found["tpr_high"]
    # Copies to the last bit are found; where no generator was, nothing is.
    assert found["copies"] == 1.0 and found["unrelated_low"] < 0.5 < found["unrelated_high"]
    assert found["network"] == "pixels" and found["steps"] is None and found["published"] == "none"


def test_a_p_is_there_where_no_label_of_the_images_was_read(compared):
    label_free, learned = membership.table(compared, "d", "gan_leaks")[0]
    one = Scored.load(compared.workdir("d", ROWS[0], None, 0), "heldout")
    expected = permutation.permutation_p(permutation.auc_of(one.scores), one.labels, one.groups)
    assert label_free["p"] == expected["p"][0] == expected["family_wise"] == 0.001
    assert label_free["shuffled"] == pytest.approx(expected["null"].mean())
    # Fitted anew to fewer permutations, which are among those of the other row.
    refitted = json.loads((compared.workdir("d", ROWS[1], None, 0) / "results.json").read_text())
    refitted = refitted["splits"]["heldout"]["metrics"]["permutation"]
    assert refitted["permutations"] == 19
    assert learned["p"] == refitted["p"] and learned["shuffled"] == pytest.approx(refitted["null_mean"])
    together = np.stack([expected["null"][:19, 0], refitted["null"]], axis=1).max(axis=1)
    assert label_free["family_wise_p"] == learned["family_wise_p"] == (1 + np.sum(together >= label_free["auc"])) / 20
    assert learned["difference"] == pytest.approx(learned["auc"] - label_free["auc"])


def test_the_binary_writes_it(compared):
    table.write(compared, "gan_leaks")
    text = (compared.output / "table.md").read_text()
    assert "| gan_leaks |" in text and "Family-wise p of the best of the 2 rows with a p: 0.050, of 19 permutations" in text
    assert [line["row"] for line in json.loads((compared.output / "table.json").read_text())] == ["gan_leaks", "learned"]


def test_rows_of_two_tasks_are_no_table(tmp_path):
    rows = [ROWS[0], Row("other", "configs/quickstart.py")]
    with pytest.raises(ValueError, match="the rows are of subtask1, subtask2: a table is of subtask1 or of subtask2"):
        _ = Comparison(tmp_path, rows, {"d": "D"}, "", 1.0).task


def test_several_seeds_count_by_their_mean(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    runs = {}
    for row, lift in (("good", 1.0), ("none", 0.0)):
        for seed in (0, 1):
            scores = rng.normal(size=(60, 1)) + lift * labels[:, None]
            runs[row, seed] = Scored(np.arange(60).astype(str), labels, (scores[:, 0] > 0).astype(int), scores, None, 2)
    comparison = Comparison(tmp_path, [Row("good", "a"), Row("none", "b")], {"d": "D"}, "", 1.0, seeds=(0, 1))
    monkeypatch.setattr(Comparison, "scored", lambda self, data, row, *rest: {seed: runs[row.name, seed] for seed in (0, 1)})
    monkeypatch.setattr(membership, "_permutation", lambda *arguments: {"p": 0.5})
    found = membership.family(comparison, "d")
    mean = lambda y: np.mean([roc_auc_score(y, runs["good", seed].scores[:, 0]) for seed in (0, 1)])  # noqa: E731
    expected = permutation.permutation_p(lambda y: np.array([mean(y)]), labels, permutations=99)
    assert found["p"]["good"] == 0.001 and expected["p"] == [0.01] and found["p"]["none"] > 0.01
    assert found["family_wise"] >= found["p"]["good"]


def test_the_first_seed_chooses_by_the_auc(monkeypatch, tmp_path):
    # `choose` asks `score_metrics.quick`, which is the AUC of the first column.
    assert systems.score_metrics.quick(np.array([0, 1]), np.array([[0.1, 3], [0.2, 0]]), "auc") == {"auc": 1.0}
