"""Every numeric field of every config has a range; what is outside it is one line."""

import inspect
import json
import math

import pytest
from ml_collections import ConfigDict

from fingerprint_jax import backbones, estimators, features
from fingerprint_jax.data import augment
from fingerprint_jax.runs import ranges
from fingerprint_jax.runs.run import Run
from fingerprint_jax.stats import decisions
from tests.conftest import CONFIGS, load_config

NOT_OPTIONS = {"self", "channels", "image_size", "rngs", "images", "key", "query", "gallery", "seed"}


def _types(config):
    """{name in the table: type} of the fields of a config that are, or may be, numbers."""
    found = {}
    for name, field, value in ranges.fields(config):
        *nodes, last = name.split(".")
        node = config
        for each in nodes:
            node = node[each]
        kind = node.get_type(last)
        if kind in (int, float) or (kind in (tuple, list) and any(True for _ in ranges.numbers_of(value))):
            found[field] = kind
    return found


@pytest.mark.parametrize("path", CONFIGS)
def test_every_numeric_field_of_a_config_has_a_range(path):
    for variant in ("", "smoke"):
        config = load_config(path, variant)
        found = _types(config)
        assert found.keys() >= {"seed", "data.valid"} and "decision.name" not in found
        missing = [field for field in found if not ranges.interval_of(field)]
        assert not missing, f"name their range in fingerprint_jax/runs/ranges.py: {missing}"
        ranges.check(config)


def test_every_numeric_option_has_a_range():
    functions = [("backbone", backbone.__init__) for backbone, _ in backbones.variants().values()]
    functions += [("features", f) for f in features.registry().values()]
    functions += [("estimator", f) for f in estimators.registry().values()]
    functions += [("decision.params", f) for f in decisions.DECISIONS.values()]
    functions += [("augment", augment.augment), ("views", augment.views)]
    asked = set()
    for section, function in functions:
        for option in inspect.signature(function).parameters.values():
            default = option.default
            number = any(True for _ in ranges.numbers_of(default)) or option.annotation in (int, float, float | None, int | None)
            if number and option.name not in NOT_OPTIONS:
                asked.add(f"{section}.{option.name}")
    asked |= {
        f"backbone.{name}" for _, fixed in backbones.variants().values() for name in fixed if any(ranges.numbers_of(fixed[name]))
    }
    assert {"backbone.depths", "features.radius", "estimator.C", "decision.params.fraction", "augment.flip", "views.shift"} <= asked
    without = [field for field in sorted(asked) if not ranges.interval_of(field)]
    assert not without, f"{', '.join(without)}: name their range in fingerprint_jax/runs/ranges.py"


def _config(field, value):
    config = ConfigDict()
    *nodes, last = field.split(".")
    node = config
    for name in nodes:
        node[name] = ConfigDict()
        node = node[name]
    node[last] = value
    return config


FIELDS = sorted(field for names in ranges.RANGES.values() for field in names.replace("*", "real").split())


@pytest.mark.parametrize("field", [*FIELDS, "backbone.an_option_of_somebody"])
def test_no_field_takes_what_is_not_finite(field):
    for value in (math.nan, math.inf, -math.inf, (1.0, math.nan)):
        with pytest.raises(ValueError, match="^[^\n]*$") as error:
            ranges.check(_config(field, value))
        assert str(error.value).startswith(f"{field}={value}: use ")


@pytest.mark.parametrize(
    ("field", "refused", "text", "taken"),
    [
        ("num_steps", (-1,), "use 0 or more", (0, 7)),
        ("log_every", (0, -3), "use 1 or more", (1,)),
        ("data.streams.real", (0,), "use 1 or more", (1,)),
        ("data.fold", (-2,), "use -1 or more", (-1, 0)),
        ("data.valid", (0.9, 7, -0.2), "use 0 to 0.5", (0, 0.0, 0.1, 0.5)),
        ("data.sequester", (0.51,), "use 0 to 0.5", (0.25,)),
        ("seed", (-1, 2**32), "use 0 to 4000000000", (0, 2**31)),
        ("optimizer.learning_rate", (-1e-4,), "use 0 or more", (0.0, 1e30)),
        ("optimizer.weight_decay", (-0.1,), "use 0 or more", (0.0,)),
        ("optimizer.clip_norm", (-1.0,), "use 0 or more", (0.0, 5)),
        ("optimizer.ema_decay", (2.0, 1.0, -0.5), "use 0 or more, less than 1", (0.0, 0.999)),
        ("optimizer.beta1", (1.0,), "use 0 or more, less than 1", (0.0,)),
        ("optimizer.drop", (1.1,), "use 0 to 1", (0.5, 1.0)),
        ("optimizer.rates", ((("a", 0.1), ("b", -1)),), "use 0 or more, each", ((), (("a", 0),))),
        ("augment.flip", (2, -0.1), "use 0 to 1", (0, 1)),
        ("augment.gabor", (-1,), "use 0 or more", (3.0,)),
        ("views.shift", (-1,), "use 0 or more", (1,)),
        ("backbone.norm_groups", (0,), "use 1 or more", (1,)),
        ("backbone.widths", ((8, 0),), "use 1 or more, each", ((8, 4),)),
        ("objective.temperature", (0.0,), "use 1e-06 or more", (0.1,)),
        ("objective.threshold", (2.0, -1.5), "use -1 to 1", (-1.0, 0.6)),
        ("objective.num_patches", (1,), "use 2 or more", (2,)),
        ("objective.dropout", (1.0,), "use 0 or more, less than 1", (0.5,)),
        ("objective.sigmas", ((0.0, 0.8), (0.05, -1.0)), "use more than 0, each", ((0.05, 0.8),)),
        ("decision.params.value", (), "", (-3.0, None)),
        ("decision.params.fraction", (1.2, -0.1), "use 0 to 1", (0.0, 1.0)),
        ("estimator.C", (0.0, -1.0), "use more than 0", (1e-3, None)),
        ("estimator.top", (0.0, 1.5), "use more than 0, up to 1", (1.0, None)),
        ("estimator.trees", (0,), "use 1 or more", (1, None)),
        ("features.points", (0,), "use 1 or more", (8,)),
        ("features.radius", (0.0,), "use more than 0", (1.0,)),
        ("features.steps", ((2.0, 0.0),), "use more than 0, each", ((2.0,),)),
        ("ensemble.admit", (1.5,), "use 0 to 1", (0.98,)),
        ("ensemble.seeds", (0, 10**9), "use 1 to 1000", (3,)),
        ("data.folds", (-1, 10**9), "use 0 to 1000", (0, 5)),
        ("pseudo.rounds", (-1,), "use 0 or more", (0,)),
        ("pseudo.least", (-0.1, 1.1), "use 0 to 1", (0.9,)),
        ("candidates", (-1,), "use 0 or more", (0,)),
        ("clusters", (0,), "use 1 or more", (1,)),
        ("pca", (-1,), "use 0 or more", (0,)),
    ],
)
def test_what_is_out_of_range_is_named_with_what_is_in_it(field, refused, text, taken):
    for value in refused:
        with pytest.raises(ValueError) as error:
            ranges.check(_config(field, value))
        assert str(error.value) == f"{field}={value}: {text}"
    for value in taken:
        ranges.check(_config(field, value))


@pytest.mark.parametrize("inside", ["member", "member.member", "member.pairs.member", "pretrain", "ensemble.variants.deep"])
def test_a_field_of_a_config_inside_is_named_from_outside(inside):
    with pytest.raises(ValueError) as error:
        ranges.check(_config(f"{inside}.optimizer.clip_norm", math.nan))
    assert str(error.value) == f"{inside}.optimizer.clip_norm=nan: use 0 or more"
    with pytest.raises(ValueError, match=rf"^{inside}.data.valid=0.33: whole parts"):
        ranges.check(_config(f"{inside}.data.valid", 0.33))


def test_a_share_is_taken_as_it_is_or_refused():
    for share, parts in ((0.1, (1, 10)), (0.4, (2, 5)), (0.35, (7, 20)), (0.3, (3, 10)), (1 / 3, (1, 3)), (0.333333, (1, 3))):
        assert ranges.parts_of("data.valid", share) == parts
    for count in (2, 20, 21, 40, 997):
        assert ranges.parts_of("data.valid", 1 / count) == (1, count)
    for share, text in (
        (0.33, "use 0.315789 (6 of 19) or 0.333333 (1 of 3)"),
        (0.4999, "use 0.473684 (9 of 19) or 0.5 (1 of 2)"),
        (0.0345, "use 0.0344828 (1 of 29) or 0.0357143 (1 of 28)"),
    ):
        with pytest.raises(ValueError) as error:
            ranges.parts_of("data.sequester", share)
        assert str(error.value) == f"data.sequester={share}: whole parts are taken, {text}"
    assert abs(ranges.parts_of("x", 0.315789)[0] / 19 - 6 / 19) < 1e-12  # what the line says is taken
    assert ranges.parts_of("x", 5e-324)[1] > 1e8  # more parts than there are images


def test_a_config_on_disk_is_named_by_its_file(tmp_path):
    config = load_config("configs/quickstart.py").to_dict()
    config["optimizer"]["clip_norm"] = math.nan
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as error:
        Run.load(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'config.json'} cannot be used (optimizer.clip_norm=nan: use 0 or more): ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", "x"),
        ("views.shift", None),
        ("data.valid", ("a",)),
        ("objective.hidden", [[1]]),
        ("objective.contrast", {}),
        ("views.shift", {"a": 1}),
    ],
)
def test_what_is_no_number_is_one_line(field, value):
    with pytest.raises(ValueError, match=f"^{field}( is a section|=.*): a number is wanted"):
        ranges.check(_config(field, value))
    ranges.check(_config("estimator.k", None))
