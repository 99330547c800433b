"""What of a config makes a run another one."""

import pytest
from ml_collections import ConfigDict

from fingerprint_jax.runs import config as configs
from fingerprint_jax.runs import ranges
from tests.conftest import CONFIGS, load_config


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("seed", "seed"),
        ("member", "member"),
        ("optimizer.drop", "optimizer.drop"),
        ("member.optimizer.drop", "optimizer.drop"),
        ("member.member.keep", "keep"),
        ("pairs.data.folds", "data.folds"),
        ("ensemble.variants.a.estimator.keep", "estimator.keep"),
        ("ensemble.variants.a.member.data_dir", "data_dir"),
        ("ensemble.variants.a", "ensemble.variants.a"),
        ("ensemble.seeds", "ensemble.seeds"),
    ],
)
def test_a_field_has_its_name_in_the_config_that_has_it(name, local):
    assert configs.local_name(name) == local


@pytest.mark.parametrize("path", CONFIGS)
def test_of_every_config_all_counts_but_what_moves(path):
    config = load_config(path)
    left_out = configs.flat_config(config).keys() - configs.identity(config).keys()
    assert {configs.local_name(name) for name in left_out} <= {*configs.MOVING, *configs.NEWER} and "data_dir" in left_out
    assert {name for name, _, _ in ranges.fields(config)} == configs.flat_config(config).keys()


@pytest.mark.parametrize("name", [name.rpartition(".")[2] for name in configs.MOVING])
@pytest.mark.parametrize("section", ["estimator", "features", "backbone", "objective"])
def test_an_option_of_a_user_is_part_of_the_hash_whatever_its_name(section, name):
    if f"{section}.{name}" in configs.MOVING:
        pytest.skip("a field of ours")
    before, after = (ConfigDict({"seed": 0, "member": {section: {"name": "mypkg.a:b", name: value}}}) for value in (1, 2))
    assert configs.config_hash(before) != configs.config_hash(after)
