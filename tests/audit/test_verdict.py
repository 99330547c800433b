"""The verdict: each of six, in the order of precedence."""

import copy

import pytest

from fingerprint_jax.audit import verdict

PARTS = {
    "plan": {"alpha": 0.05},
    "panel": {"p": 0.4, "p_wrong_direction": 0.6},
    "controls": {"content": [], "replaced": []},
    "excess": {"value": 0.12, "interval": [0.03, 0.2], "attack": "local_match", "control": "intensity"},
    "exact": [],
    "near": {"used": 5, "not_used": 0},
    "counts": {"used": 100, "not_used": 100, "real": 300, "without_patient": 0},
    "turned": None,
    "copies": {"fdr": 0.05, "flagged": [], "against_reference": [{"name": "used", "auc": 0.7, "interval": [0.6, 0.8]}]},
}


def parts(**changes):
    """The parts of an audit with other values, `part.field`."""
    document = copy.deepcopy(PARTS)
    for place, value in changes.items():
        part, _, field = place.partition("__")
        if field:
            document[part][field] = value
        else:
            document[part] = value
    return document


SIGNIFICANT = {"panel__p": 0.05}
CASES = {
    verdict.NONE: {},
    verdict.EVIDENCE: SIGNIFICANT,
    verdict.CONTENT: SIGNIFICANT | {"excess__interval": [0.0, 0.2]},
    verdict.WRONG_DIRECTION: SIGNIFICANT | {"panel__p_wrong_direction": 0.01},
    verdict.COPIES: SIGNIFICANT
    | {"panel__p_wrong_direction": 0.01, "copies__flagged": [{"id": "a", "class": "used", "group": "a"}]},
    verdict.CANNOT_TELL: {"copies__flagged": [{"id": "a", "class": "used", "group": "a"}], "controls": {"reason": "too few"}},
}


@pytest.mark.parametrize("name", verdict.EXIT_STATUS)
def test_the_first_that_applies_is_the_verdict(name):
    found, reasons = verdict.decide(parts(**CASES[name]))
    assert found == name and reasons and all(reasons)


TURNED = {"turned": {"change": "inverted", "share": 0.9, "images": 200}}


@pytest.mark.parametrize("name", [verdict.NONE, verdict.EVIDENCE, verdict.CONTENT, verdict.WRONG_DIRECTION, verdict.COPIES])
def test_images_on_both_sides_and_turned_ones_support_no_answer(name):
    shared = {"near": {"used": 2, "not_used": 6}}
    found, reasons = verdict.decide(parts(**CASES[name] | shared))
    assert found == (verdict.COPIES if name == verdict.COPIES else verdict.CANNOT_TELL)
    if found == verdict.CANNOT_TELL:
        assert reasons[0].startswith(
            "6 of 100 images given as not used have a near duplicate in the other folder or in the reference"
        )
    # What is found in turned images is there all the same.
    found, reasons = verdict.decide(parts(**CASES[name] | TURNED))
    assert found == (name if name in (verdict.COPIES, verdict.EVIDENCE) else verdict.CANNOT_TELL)
    if found == verdict.CANNOT_TELL:
        assert reasons[0].startswith(
            "90% of 200 synthetic images lie nearer to a real one inverted: give them as the real ones are"
        )


def test_a_p_just_above_alpha_is_no_evidence():
    assert verdict.decide(parts(panel__p=0.051))[0] == verdict.NONE


def test_every_verdict_has_its_rule_in_the_order_of_precedence():
    assert list(verdict.RULES) == list(verdict.EXIT_STATUS)


def test_exit_statuses_differ_from_each_other_and_from_those_of_mistakes():
    statuses = list(verdict.EXIT_STATUS.values())
    assert len(set(statuses)) == 6 and not {1, 2, 75} & set(statuses) and verdict.EXIT_STATUS[verdict.NONE] == 0


def test_both_directions_are_said():
    name, reasons = verdict.decide(parts(panel__p=0.04, panel__p_wrong_direction=0.01))
    assert name == verdict.WRONG_DIRECTION and "by another method they are nearer" in reasons[1]
    assert len(verdict.decide(parts(panel__p_wrong_direction=0.01))[1]) == 1


@pytest.mark.parametrize("name", [verdict.CANNOT_TELL, verdict.EVIDENCE, verdict.CONTENT, verdict.WRONG_DIRECTION])
def test_images_unlike_the_reference_are_not_called_copied_and_the_other_rules_go_on(name):
    flagged = [{"id": "a", "class": "used", "group": "a"}, {"id": "b", "class": "unknown", "group": "b"}]
    unlike = [{"name": "used", "auc": 0.7, "interval": [0.61, 0.79]}, {"name": "not_used", "auc": 0.9, "interval": [0.8, 1]}]
    panel = CASES[verdict.NONE if name == verdict.CANNOT_TELL else name]  # where no other rule applies nothing is told
    found, reasons = verdict.decide(parts(**panel, copies__flagged=flagged, copies__against_reference=unlike))
    assert found == name and reasons[:-1] == verdict.decide(parts(**panel))[1]
    assert "2 real images of 2 patients are flagged" in reasons[-1] and "given as used (AUC 0.700): " in reasons[-1]
    assert "look at each pair" in reasons[-1]


def test_only_the_classes_with_flagged_images_have_to_look_like_the_reference():
    unlike = [{"name": "used", "auc": 0.5, "interval": [0.4, 0.6]}, {"name": "unknown", "auc": 0.9, "interval": [0.8, 1]}]
    for name, expected in (("used", verdict.COPIES), ("not_used", verdict.COPIES), ("unknown", verdict.CANNOT_TELL)):
        found = {"copies__flagged": [{"id": "a", "class": name, "group": "a"}], "copies__against_reference": unlike}
        assert verdict.decide(parts(**found))[0] == expected


def test_copies_are_counted_in_patients_where_any_is_known():
    flagged = [{"id": name, "class": "used", "group": name[0]} for name in ("a1", "a2", "b1")]
    alike = {"copies__flagged": flagged, "copies__against_reference": []}
    assert verdict.decide(parts(**alike))[1][0].startswith("3 real images of 2 patients are closer")
    assert verdict.decide(parts(**alike, counts__without_patient=300))[1][0].startswith("3 real images are closer")
    one = alike | {"copies__flagged": flagged[:1]}
    assert verdict.decide(parts(**one))[1][0].startswith("1 real image of 1 patient is closer")


def test_an_equal_image_needs_no_p_and_no_other_part():
    exact = [
        {"id": "a", "class": "used", "group": "a"},
        {"id": "b", "class": "not_used", "group": "b"},
        {"id": "c", "class": "used", "group": "c"},
    ]
    told = "pixel for pixel among the synthetic images: 3 real images of 3 patients (2 used, 1 not used)"
    assert verdict.decide(parts(exact=exact)) == (verdict.COPIES, [told])
    assert verdict.decide(parts(exact=exact, panel={"reason": "19 patients"})) == (verdict.COPIES, [told, "19 patients"])


@pytest.mark.parametrize("part", ["panel", "controls", "copies"])
def test_what_could_not_be_had_is_the_reason(part):
    assert verdict.decide(parts(**{part: {"reason": "19 patients"}})) == (verdict.CANNOT_TELL, ["19 patients"])
