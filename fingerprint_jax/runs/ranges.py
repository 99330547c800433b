"""The range of every numeric field of a config; what is outside it, NaN or infinite is refused before anything is done with it."""

import fnmatch
import functools
import numbers
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from ml_collections import ConfigDict

from fingerprint_jax import Config
from fingerprint_jax.runs.config import local_name

MOST_SEED = 4_000_000_000  # scikit-learn and JAX take 32 bits; children count on from it

# Interval -> fields, as they are called in the config that has them: `member.optimizer.drop` is `optimizer.drop`. Bounds that hang
# on the data, or on other fields, are checked where those are known. No field that is listed here may be NaN or infinite.
RANGES = {
    "(-inf, inf)": "ensemble.coefficients decision.params.k decision.params.value decision.params.confidence objective.time_mean",
    "[-1, inf)": "data.fold",
    "[0, inf)": """
        num_steps patience data.max_damaged data.workers
        augment.shift augment.brightness augment.contrast augment.rotate augment.gabor views.shift
        backbone.project backbone.attended backbone.layer_scale backbone.registers
        objective.adversarial_weight objective.angular_weight objective.candidates objective.contrast
        objective.contrastive_weight objective.hidden
        objective.identity_weight objective.kl objective.latent objective.latent_map objective.margin objective.nce_weight
        objective.r1 objective.time_deviation
        optimizer.learning_rate optimizer.warmup_steps optimizer.weight_decay optimizer.clip_norm optimizer.rates
        candidates pseudo.rounds pseudo.cap
        features.size features.bins pca estimator.clusters estimator.radius""",
    "[1, inf)": """
        eval_every checkpoint_every keep log_every steps_per_dispatch eval_batch data.streams.*
        backbone.norm_groups backbone.blocks backbone.depth backbone.depths backbone.growth backbone.heads backbone.num_features
        backbone.num_spectrum backbone.patch backbone.stages backbone.stem_width backbone.width backbone.widths
        objective.ada_images objective.draws objective.features objective.gate objective.heads objective.k objective.layers
        objective.noise objective.num_pairs objective.projection objective.queue objective.size objective.width objective.widths
        optimizer.drops optimizer.accumulate
        clusters
        features.levels features.points estimator.trees estimator.textures estimator.selected estimator.min_samples estimator.k
        estimator.components estimator.stride""",
    "[0, 1000]": "data.folds",  # children, whose configs are made before anything is known of them
    "[1, 1000]": "ensemble.seeds",
    "[2, inf)": "objective.num_patches estimator.patch",
    "(0, inf)": "estimator.width objective.scored objective.sigmas features.steps features.radius estimator.C",
    "[1e-06, inf)": "objective.temperature objective.deviation",  # what is divided by them must stay finite in float32
    "[0, 0.5]": "data.valid data.sequester",
    "[0, 1]": """
        augment.flip augment.scale augment.erase augment.mask augment.crop
        objective.label_dropout objective.momentum objective.online objective.times optimizer.drop
        decision.params.fraction ensemble.admit pseudo.least""",
    "[0, 1)": """
        backbone.dropout backbone.stochastic_depth objective.ada_target objective.dropout
        optimizer.beta1 optimizer.beta2 optimizer.ema_decay""",
    "(0, 1]": "estimator.top",
    "[-1, 1]": "objective.threshold",  # a cosine
    f"[0, {MOST_SEED}]": "seed data.split_seed objective.noise_seed",
}
SHARES = ("data.valid", "data.sequester")
MOST_PARTS = 20  # folds that a share of more than one of them is taken from
CLOSE = Fraction(1, 10**6)  # six digits name a third

_INTERVALS = {field: interval for interval, names in RANGES.items() for field in names.split()}
# What an objective augments by itself has the fields of `augment`.
_INTERVALS.update({f"objective.{field}": interval for field, interval in _INTERVALS.items() if field.startswith("augment.")})


def check(config: Config) -> None:
    """Raises ValueError that names the first field of a config, or of one inside it, that is out of range, and what is in it.

    Of a field that is not in the table, an option of somebody's own, any finite number is in range.
    """
    for name, field, value in fields(config):
        if isinstance(value, ConfigDict):
            raise ValueError(f"{name} is a section: a number is wanted, {words(interval_of(field))}")
        interval = interval_of(field) or "(-inf, inf)"
        if interval_of(field) and not _numeric(field, value):
            raise ValueError(f"{name}={value!r}: a number is wanted, {words(interval)}")
        each = ", each" if isinstance(value, (tuple, list)) else ""
        if not all(_holds(interval, number) for number in numbers_of(value)):
            raise ValueError(f"{name}={value}: use {words(interval)}{each}")
        if field in SHARES and isinstance(value, (int, float)) and value:
            parts_of(name, value)


def fields(config: Config, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every field of a config and of those inside it: its name from outside, its name in the config that has it, its value.

    A section is none, unless it stands where a number does.
    """
    for key, value in config.items():
        name, field = prefix + key, local_name(prefix + key)
        if isinstance(value, ConfigDict) and not interval_of(field):
            yield from fields(value, f"{name}.")
        else:
            yield name, field, value


@functools.lru_cache(maxsize=4096)  # every child of a run asks for every field of its config
def interval_of(field: str) -> str:
    """The interval of a field, '' where the table has none."""
    found = (interval for pattern, interval in _INTERVALS.items() if fnmatch.fnmatchcase(field, pattern))
    return _INTERVALS.get(field) or next(found, "")


def numbers_of(value: Any) -> Iterator[Any]:
    """The numbers that a value is, or that lie in it however deep; a truth value is none."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from numbers_of(each)
    elif not isinstance(value, bool) and isinstance(value, numbers.Real):
        yield value


def _numeric(field: str, value: Any) -> bool:
    """Whether a value has the form of a number, or of several; None stands for the default of what has options of its own."""
    if value is None:
        return field.startswith(("estimator.", "features.", "decision.params."))
    several = value if isinstance(value, (tuple, list)) else (value,)
    return field == "optimizer.rates" and isinstance(value, (tuple, list)) or all(isinstance(x, numbers.Real) for x in several)


def _holds(interval: str, value: Any) -> bool:
    low, high = map(float, interval[1:-1].split(", "))
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)  # of NaN all are false


def words(interval: str) -> str:
    """An interval as it is said: `[0, 1)` -> `0 or more, less than 1`."""
    low, high = interval[1:-1].split(", ")
    if interval == "(-inf, inf)":
        return "a finite number"
    if interval[0] + interval[-1] == "[]":
        return f"{low} to {high}"
    least = f"{low} or more" if interval[0] == "[" else f"more than {low}"
    return least if high == "inf" else f"{least}, {'up to' if interval[-1] == ']' else 'less than'} {high}"


def parts_of(name: str, share: float) -> tuple[int, int]:
    """A share of up to a half as p of q equal parts: one of any number, else some of at most MOST_PARTS.

    Raises ValueError that gives the nearest such shares where this is none; `name` is that of the field.
    """
    exact, count = Fraction(share), int(min(1 / share, 1e9))
    ones = [Fraction(1, count), Fraction(1, count + 1)]
    for near in (*ones, exact.limit_denominator(MOST_PARTS)):
        if near and abs(near - exact) <= CLOSE:
            return near.numerator, near.denominator
    several = [Fraction(p, q) for q in range(1, MOST_PARTS + 1) for p in range(1, q // 2 + 1)]
    near = max(f for f in (*several, *ones) if f < exact), min(f for f in (*several, *ones) if f > exact)
    use = " or ".join(f"{float(f):.6g} ({f.numerator} of {f.denominator})" for f in near)
    raise ValueError(f"{name}={share}: whole parts are taken, use {use}")
