"""The evaluation binary: prediction files without a run, decisions that may not see what they decide, other data."""

import json

import numpy as np
import pytest
from absl import flags

from fingerprint_jax import evaluate, pack
from fingerprint_jax.data import phantom
from fingerprint_jax.run import Run
from tests import published
from tests.conftest import fit


def run_binary(module, *arguments):
    """A binary in this process, with flags of its own."""
    values = flags.FlagValues()
    module.define_flags(values)
    values(["binary", *arguments])
    module.main(values)


@pytest.mark.parametrize("row", published.runs("subtask1"), ids=lambda row: str(row["run"]))
def test_table_2_comes_out_of_the_binary(row, tmp_path):
    predictions, truth = published.write_files(tmp_path, published.confusion(row))
    run_binary(evaluate, "--task=subtask1", f"--predictions={predictions}", f"--truth={truth}", f"--output={tmp_path / 'out'}")
    metrics = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    assert round(metrics["cohen_kappa"], 3) == row["kappa"]
    assert round(metrics["accuracy"], 3) == row["accuracy"]
    for figure in ("precision", "recall", "f1"):
        assert abs(metrics["positive"][figure] - row[figure]) <= 0.5001e-4
    low, high = metrics["intervals"]["cohen_kappa"]
    assert low < metrics["cohen_kappa"] < high


def test_files_that_do_not_fit_are_one_line_that_names_both(tmp_path):
    (tmp_path / "t.csv").write_text("a,0\nb,1\n")
    (tmp_path / "p.csv").write_text("a,0\nc,1\n")
    with pytest.raises(ValueError, match=r"p.csv does not fit .*t.csv"):
        evaluate.score_files("subtask1", str(tmp_path / "p.csv"), str(tmp_path / "t.csv"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_without_a_run_or_files_it_says_what_to_give():
    with pytest.raises(ValueError, match="--workdir, or all of --task"):
        run_binary(evaluate, "--task=subtask1")


@pytest.fixture(scope="module")
def quickstart(data_dir, tmp_path_factory):
    return fit("configs/quickstart.py", data_dir, tmp_path_factory.mktemp("quickstart") / "run")


def test_a_decision_never_learns_from_the_rows_it_decides(quickstart):
    run = Run.load(quickstart.workdir)
    run.config.decision.name, run.config.decision.known = "learned_threshold", "heldout"
    for split in ("heldout", "heldout:1"):
        with pytest.raises(ValueError, match=f"cannot learn from {split} itself"):
            evaluate.decide(run, split, run.predict(split))
    run.config.decision.known = ""
    with pytest.raises(ValueError, match="set decision.known"):
        evaluate.decide(run, "heldout", run.predict("heldout"))


def test_another_data_set_is_scored_with_an_old_run(quickstart, tmp_path):
    phantom.write(tmp_path / "new", "subtask2", phantom.subtask2(seed=9, size=48, leak=0.5, real=8, generated=10, unknown=5), 9)
    pack.pack("subtask2", str(tmp_path / "data"), str(tmp_path / "new" / "train"))
    run_binary(evaluate, f"--workdir={quickstart.workdir}", "--split=train_real", f"--data_dir={tmp_path / 'data'}")
    document = json.loads((quickstart.workdir / "results.json").read_text())
    assert document["splits"]["train_real"]["n"] == 40
    assert document["fingerprints"] != Run.load(quickstart.workdir).source.fingerprints
    # The table of the other data is stale for the run's own.
    own = Run.load(quickstart.workdir)
    np.testing.assert_array_equal(own.predict("train_real").ids, own.rows("train_real").ids)


def test_the_binary_writes_the_submission_in_the_style_asked_for(quickstart, tmp_path, capsys):
    run_binary(
        evaluate,
        f"--workdir={quickstart.workdir}",
        "--split=test_generated",
        f"--submission={tmp_path / 'run.csv'}",
        "--style=gen_t",
        "--extension=.png",
    )
    lines = (tmp_path / "run.csv").read_text().splitlines()
    assert len(lines) == 20
    assert all(
        name.endswith(".png") and label in {f"gen_t{k}" for k in range(1, 6)} for name, label in (x.split(",") for x in lines)
    )
    assert "submission:" in capsys.readouterr().out
