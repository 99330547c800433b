"""Views of the data, the config of a resumed run, and stale tables."""

import numpy as np
import pytest

from fingerprint_jax import methods
from fingerprint_jax.run import Run
from tests.conftest import CONFIGS, load_config


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
def test_a_config_survives_its_file(path, data_dir, tmp_path):
    config = load_config(path, "")
    config.data_dir = data_dir
    Run(config, tmp_path).save_config()
    assert Run.load(tmp_path).config.to_dict() == config.to_dict()
    Run(config, tmp_path).save_config()


def test_a_changed_config_is_refused_with_the_field_and_both_values(data_dir, tmp_path):
    config = _config(data_dir)
    Run(config, tmp_path).save_config()
    config.optimizer.learning_rate = 0.5
    with pytest.raises(ValueError, match="config.optimizer.learning_rate is 0.5, the run was started with 0.001"):
        methods.get("gradient").fit(Run(config, tmp_path))


def test_no_data_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="run fingerprint_jax.pack"):
        Run(_config(str(tmp_path)), tmp_path).rows("valid")


def test_predictions_are_read_back_and_a_stale_table_is_made_anew(data_dir, tmp_path):
    run = Run(_config(data_dir), tmp_path / "run")
    methods.get("gradient").fit(run)
    first = run.predict("heldout")
    table = tmp_path / "run" / "predictions" / "heldout.csv"
    table.write_text(table.read_text().replace("score_0", "score_x"))
    again = run.predict("heldout")
    assert "score_x" in table.read_text()  # it was read, not written
    np.testing.assert_array_equal(first.scores, again.scores)
    Run.load(tmp_path / "run", step="2").predict("heldout")
    assert "score_x" not in table.read_text()  # another step: made anew
