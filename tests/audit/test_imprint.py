"""The updated scores against the panel on the imprinted set, the imprints, and the power where the answer is known."""

import itertools

import numpy as np
import pytest
from scipy.stats import beta

from fingerprint_jax.audit import imprint, panel
from fingerprint_jax.estimators import local_match, mosaic, unlabelled
from tests.audit.test_panel import images

GENERATED, REFERENCE = 70, 30  # more synthetic images than references, and in the swapped case fewer


@pytest.fixture(scope="module", params=["more synthetic", "more reference"])
def case(request):
    """A pool of 24, a synthetic set, a reference, what is known of them, and six imprints of which three are chosen."""
    sizes = (GENERATED, REFERENCE) if request.param == "more synthetic" else (REFERENCE, GENERATED)
    pool, generated, reference = np.split(images(24 + sum(sizes)), [24, 24 + sizes[0]])
    background = imprint.Background(pool, generated, reference, most=6, seed=3)
    imprinted = imprint.imprints("blend", 0.75, pool, generated[background.nearest], 0)
    return pool, generated, reference, background, imprinted, np.array([2, 5, 20]), np.array([0, 11, 7])


def squares(*sets):
    """What patches are compared of: of the pool, and of the synthetic images and the reference as a gallery."""
    starts = np.cumsum([0, *map(len, sets)])
    query, generated, reference = (unlabelled(panel.views(x).square, first) for x, first in zip(sets, starts, strict=False))
    return query, {"generated": generated, "reference": reference}


def test_gan_leaks_is_that_of_the_imprinted_set(case):
    pool, generated, reference, background, imprinted, chosen, places = case
    found = background.scores(background.near(imprinted), chosen, places)[:, 0]
    expected = panel.scores(pool, np.concatenate([generated, imprinted[chosen]]), reference)[:, 0]
    np.testing.assert_array_equal(found, expected)
    assert (found[chosen] > background.scores(None, np.array([], int), np.array([], int))[chosen, 0]).all()


def test_mosaic_is_that_of_the_imprinted_set(case):
    pool, generated, reference, background, imprinted, chosen, places = case
    query, gallery = squares(pool, np.concatenate([generated, imprinted[chosen]]), reference)
    expected = mosaic.mosaic(query, gallery, seed=3, **panel.OPTIONS["mosaic"])[:, 0]
    found = background.scores(background.near(imprinted), chosen, places)[:, 2]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert (found[chosen] > background.scores(None, np.array([], int), np.array([], int))[chosen, 2]).all()


def test_local_match_is_that_of_the_imprinted_set_in_the_same_parts(case, monkeypatch):
    pool, generated, reference, background, imprinted, chosen, places = case
    cut = local_match.parts

    def parts(rng, count, size):
        if count != len(generated) + len(chosen):
            return cut(rng, count, min(len(generated), len(reference)))
        old = cut(rng, len(generated), min(len(generated), len(reference)))
        return [np.concatenate([part, len(generated) + np.flatnonzero([place in part for place in places])]) for part in old]

    monkeypatch.setattr(local_match, "parts", parts)
    query, gallery = squares(pool, np.concatenate([generated, imprinted[chosen]]), reference)
    expected = local_match.local_match(query, gallery, seed=3, **panel.OPTIONS["local_match"])[:, 0]
    found = background.scores(background.near(imprinted), chosen, places)
    np.testing.assert_allclose(found[:, 1], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found, panel.with_both(found[:, :3]))


def test_without_imprints_the_scores_are_the_panels(case):
    pool, generated, reference, *_ = case
    generated, reference = generated[panel.canonical(generated)], reference[panel.canonical(reference)]
    background = imprint.Background(pool, generated, reference, most=6, seed=3)
    none = np.array([], int)
    expected = panel.scores(pool, generated, reference, seed=3)
    for near in (None, background.near(pool)):
        np.testing.assert_allclose(background.scores(near, none, none), expected, rtol=1e-4, atol=1e-5)


def test_imprints_are_what_they_are_called():
    pool, nearest = images(300), images(300, seed=1)
    pool[0], pool[0, 4:16, 4:20] = 0, images(1, seed=2)[0, 4:16, 4:20] // 2 + 128  # a body with a known box
    np.testing.assert_array_equal(imprint.imprints("verbatim", None, pool, nearest, 0), pool)
    blended = imprint.imprints("blend", 0.75, pool, nearest, 0)
    assert np.abs(blended - (0.75 * pool + 0.25 * nearest)).max() <= 0.5
    pasted = imprint.imprints("patch", None, pool, nearest, 0)[0]
    expected = nearest[0].copy()
    expected[7:13, 8:16] = pool[0, 7:13, 8:16]
    np.testing.assert_array_equal(pasted, expected)
    seen = set()
    for image, shifted in zip(pool[1:], imprint.imprints("shifted", None, pool, nearest, 0)[1:], strict=True):
        padded = np.pad(image, 2, mode="edge")
        moves = [(y, x) for y, x in itertools.product(range(5), repeat=2) if (padded[y : y + 24, x : x + 24] == shifted).all()]
        assert len(moves) == 1
        seen.add(moves[0])
    assert (2, 2) not in seen and len(seen) == 24


@pytest.fixture(scope="module")
def sets():
    """Reference images of 1 to 3 a patient, and synthetic ones."""
    reference, generated = np.split(images(170, 16), [100])
    groups = np.repeat([f"p{i}" for i in range(51)], np.resize([1, 2, 3], 51))[:100]
    return reference, groups, generated


# Of 15 patients 0.1 and 0.11 are two: the second is left out.
SMALL = {"rates": (0.1, 0.11, 1.0), "repeats": 6, "null_repeats": 60, "permutations": 39}


@pytest.fixture(scope="module")
def found(sets):
    saved = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imprint, "KINDS", (("verbatim", None), ("blend", 0.5)))
        result = imprint.limit(*sets, 30, 20, save=saved.__setitem__, **SMALL)
    return result, saved


def test_sizes_and_points(found):
    result, saved = found
    assert [result[key] for key in ("pool", "used", "not_used", "reference")] == [50, 30, 20, 50]
    assert [(kind["kind"], kind["strength"]) for kind in result["kinds"]] == [("verbatim", None), ("blend", 0.5)]
    assert [(p["rate"], p["images"], p["repeats"]) for p in result["kinds"][0]["points"]] == [(0.1, 2, 6), (1.0, 15, 6)]
    assert set(saved) == {"null", *(f"{kind}, rate {rate}" for kind in ("verbatim", "blend 0.5") for rate in ("0.1", "1"))}


def test_without_imprints_alarms_are_as_rare_as_alpha(found):
    null = found[0]["null"]
    assert null["repeats"] == 60 and 0 <= null["detected"] <= 9  # 99.9% of binomial draws at 5%
    assert null["power"] == null["detected"] / 60


def test_copies_of_all_are_found_and_fewer_less_often(found):
    assert found[0]["used_patients"] == 15  # of 25 patients who are held out, three of five
    for kind in found[0]["kinds"]:
        few, all_of_them = kind["points"]
        assert all_of_them["detected"] == 6 and few["detected"] < 5
        assert (kind["smallest"]["rate"], kind["smallest"]["one_in"]) == (1.0, 1)


def test_a_resumed_limit_computes_only_what_is_missing(sets, found, monkeypatch):
    result, saved = found
    monkeypatch.setattr(imprint, "KINDS", (("verbatim", None), ("blend", 0.5)))
    again = {}
    done = {key: point for key, point in saved.items() if key != "blend 0.5, rate 1"}
    assert imprint.limit(*sets, 30, 20, done=done, save=again.__setitem__, **SMALL) == result
    assert again == {"blend 0.5, rate 1": saved["blend 0.5, rate 1"]}
    monkeypatch.setattr(imprint, "Background", None)  # nothing is compared any more
    assert imprint.limit(*sets, 30, 20, done=saved, **SMALL) == result


def test_order_and_names_change_nothing(sets, monkeypatch):
    reference, groups, generated = sets
    monkeypatch.setattr(imprint, "KINDS", (("verbatim", None),))
    rng = np.random.default_rng(5)
    order, names = rng.permutation(100), rng.permutation(51)
    renamed = np.array([f"q{names[int(group[1:])]}" for group in groups])
    seen = []

    def spied(statistic, labels, groups, *rest):
        seen.append(statistic(labels))
        return {"family_wise": 1.0}

    monkeypatch.setattr(imprint, "permutation_p", spied)
    imprint.limit(*sets, 30, 20, **SMALL)
    before = seen.copy()
    seen.clear()
    imprint.limit(reference[order], renamed[order], generated[rng.permutation(70)], 30, 20, **SMALL)
    np.testing.assert_allclose(seen, before, rtol=0, atol=1e-9)
    assert np.std(before, axis=0).min() > 0.01


def test_patients_are_held_out_and_play_used_as_a_whole(sets, monkeypatch):
    reference, groups, generated = sets
    monkeypatch.setattr(imprint, "KINDS", (("verbatim", None),))
    group_of = {image.tobytes(): group for image, group in zip(reference, groups, strict=True)}
    seen = []

    def spied(statistic, labels, groups, permutations, seed):
        assert len(labels) == len(np.unique(groups)) == 25 and np.isfinite(statistic(labels)).all()
        seen.append(tuple(groups[labels == 1].tolist()))
        return {"family_wise": 0.05 + 0.005 * (len(seen) % 3)}

    class Spied(imprint.Background):
        def __init__(self, pool, generated, reference, *rest):
            held, left = ({group_of[image.tobytes()] for image in x} for x in (pool, reference))
            assert not held & left and len(held) > 20
            super().__init__(pool, generated, reference, *rest)

    monkeypatch.setattr(imprint, "permutation_p", spied)
    monkeypatch.setattr(imprint, "Background", Spied)
    result = imprint.limit(reference, groups, generated, 30, 20, **SMALL)
    assert result["null"]["detected"] == 20  # of 60, whose p is 0.05, 0.055, 0.06 in turn
    assert {len(used) for used in seen} == {15} and len(set(seen)) > 3


def test_intervals_are_of_clopper_and_pearson():
    point = imprint._point(18, 20)
    np.testing.assert_allclose(point["interval"], [beta.ppf(0.025, 18, 3), beta.ppf(0.975, 19, 2)], rtol=1e-6)


@pytest.mark.parametrize(
    ("detected", "smallest"),
    [
        ([1, 5, 20, 20], {"rate": 0.1, "one_in": 10, "interval": [0.1, 0.1]}),
        ([1, 17, 20, 20], {"rate": 0.05, "one_in": 20, "interval": [0.05, 0.1]}),
        ([17, 5, 16, 19], {"rate": 0.1, "one_in": 10, "interval": [0.02, None]}),
        ([20, 20, 20, 15], None),
        ([20, 20, 20, 20], {"rate": 0.02, "one_in": 50, "interval": [0.02, 0.02]}),
    ],
)
def test_the_smallest_rate_is_found_there_and_at_all_higher_ones(detected, smallest):
    rates = (0.02, 0.05, 0.1, 0.2)
    points = [{"rate": r, "images": round(100 * r)} | imprint._point(d, 20) for r, d in zip(rates, detected, strict=True)]
    assert imprint._smallest(points, 100) == smallest


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"n_used": 30, "n_not_used": 19},
            "reference: of 100 images 31 could play used and 19 not used, in the proportion of the 30 and 19 patients",
        ),
        ({"n_used": 900, "n_not_used": 90}, "reference: of 100 images 45 could play used and 5 not used"),
        ({"n_used": 0, "n_not_used": 0}, "reference: of 100 images 0 could"),
        ({"rates": (0.5, 0.1)}, r"rates=\[0.5, 0.1\]: use ascending"),
        ({"rates": ()}, r"rates=\[\]: use ascending"),
        ({"rates": (0.5, 1.5)}, "rates=.*: use ascending"),
        ({"permutations": 18}, "permutations=18: .*use at least 19"),
        ({"reference_groups": np.repeat(["a", "b"], 50)}, "reference_groups: 1 group is held out"),
    ],
)
def test_bad_arguments_are_one_line(sets, changed, message):
    arguments = dict(zip(("reference", "reference_groups", "generated"), sets, strict=True)) | {"n_used": 30, "n_not_used": 20}
    with pytest.raises(ValueError, match=message) as error:
        imprint.limit(**arguments | SMALL | changed)
    assert "\n" not in str(error.value)
