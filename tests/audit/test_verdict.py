"""The verdict: each of six, in the order of precedence."""

import copy

import pytest

from fingerprint_jax.audit import verdict

PARTS = {
    "plan": {"alpha": 0.05},
    "panel": {"p": 0.4, "p_wrong_direction": 0.6},
    "controls": {"content": [{"name": "layout", "auc": 0.55, "interval": [0.5, 0.6]}], "replaced": []},
    "excess": {"value": 0.12, "interval": [0.03, 0.2], "attack": "local_match", "control": "intensity"},
    "copies": {"fdr": 0.05, "flagged": []},
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
    verdict.COPIES: SIGNIFICANT | {"panel__p_wrong_direction": 0.01, "copies__flagged": [{"id": "a"}]},
    verdict.CANNOT_TELL: {"copies__flagged": [{"id": "a"}], "controls": {"reason": "too few"}},
}


@pytest.mark.parametrize("name", verdict.EXIT_STATUS)
def test_the_first_that_applies_is_the_verdict(name):
    found, reasons = verdict.decide(parts(**CASES[name]))
    assert found == name and reasons and all(reasons)


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


def test_images_that_lie_otherwise_are_not_called_copied():
    content = [{"name": "intensity", "auc": 0.9, "interval": [0.8, 1]}, {"name": "layout", "auc": 0.56, "interval": [0.51, 0.61]}]
    found = {"copies__flagged": [{"id": "a"}, {"id": "b"}], "controls__content": content}
    name, reasons = verdict.decide(parts(**found))
    assert name == verdict.CANNOT_TELL and "2 real images are flagged as copied" in reasons[0] and "AUC 0.560" in reasons[0]
    assert verdict.decide(parts(copies__flagged=[{"id": "a"}], controls__content=PARTS["controls"]["content"]))[0] == verdict.COPIES


@pytest.mark.parametrize("part", ["panel", "controls", "copies"])
def test_what_could_not_be_had_is_the_reason(part):
    assert verdict.decide(parts(**{part: {"reason": "19 patients"}})) == (verdict.CANNOT_TELL, ["19 patients"])
