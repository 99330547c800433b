"""What is read of finished runs: only what `evaluate` can have written."""

import json

import pytest

from fingerprint_jax.evaluation import score
from launch import compare


def _write(folder, figures) -> None:
    (folder / "results.json").write_text(json.dumps({"schema": score.SCHEMA, "splits": {"heldout": {"metrics": figures}}}))


@pytest.mark.parametrize("figures", [{}, 3, {"permutation": 3}])
def test_a_task_without_a_p_has_no_family(figures, tmp_path):
    _write(tmp_path, figures)
    with pytest.raises(ValueError, match="has no p on heldout|the p of heldout is no number"):
        compare.kept_permutation(tmp_path, "heldout")


@pytest.mark.parametrize("said", [{"p": "0.01"}, {"p": 0.01, "null": ["a"]}, {"p": 0.1, "null": "x"}, {"p": 2}, {}, [0.01]])
def test_a_p_that_evaluate_has_not_written_is_refused(said, tmp_path):
    _write(tmp_path, {"permutation": said})
    with pytest.raises(ValueError, match="results.json: the p of heldout is no number: evaluate it anew"):
        compare.kept_permutation(tmp_path, "heldout")


@pytest.mark.parametrize("p", [0.01, None])
def test_a_p_is_read_as_it_was_written(p, tmp_path):
    _write(tmp_path, {"permutation": {"p": p}})
    assert compare.kept_permutation(tmp_path, "heldout") == {"p": p}
