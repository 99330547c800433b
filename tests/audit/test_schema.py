"""The schema of audit.json; the audits of test_audit.py are held to it as they are made."""

import pytest
from jsonschema import Draft202012Validator

from fingerprint_jax.audit import verdict
from tests.audit.documents import SCHEMA, audit


def objects(schema):
    """All objects whose fields are listed, wherever they stand."""
    if isinstance(schema, dict):
        yield from [schema] if isinstance(schema.get("properties"), dict) else []
        for value in schema.values():
            yield from objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from objects(value)


def test_each_key_is_described_and_no_other_is_let_through():
    Draft202012Validator.check_schema(SCHEMA.schema)
    found = list(objects(SCHEMA.schema))
    assert len(found) > 15
    for each in found:
        assert each["additionalProperties"] is False
        for name, field in each["properties"].items():
            assert field.get("description"), name
    assert set(SCHEMA.schema["properties"]["verdict"]["properties"]["name"]["enum"]) == set(verdict.EXIT_STATUS)


@pytest.mark.parametrize("part", ["panel", "copies", "controls", "limit"])
def test_what_is_none_is_refused(part):
    schema = SCHEMA.evolve(schema=SCHEMA.schema["properties"][part] | {"$defs": SCHEMA.schema["$defs"]})
    reason = {"reason": "too few"}
    assert schema.is_valid(reason)
    assert not schema.is_valid(reason | {"other": 1}) and not schema.is_valid({}) and not schema.is_valid({"reason": 1})
    if part in ("panel", "controls", "limit"):
        assert schema.is_valid(audit()[part])
        assert not schema.is_valid(audit()[part] | {"other": 1})
