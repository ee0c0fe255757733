"""The lines under `privileges:`: schemas and functions by names of any kind, written and read as the same."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from orchestrator.grants.models import DatabaseGrant
from orchestrator.grants.privileges import DeclaredPrivilege, Privilege, parse_function


def read(line: dict[str, object]) -> Privilege:
    return DeclaredPrivilege.model_validate(line).privilege()


@pytest.mark.parametrize(
    ("written", "name"),
    [("extensions", "extensions"), ("Extensions", "extensions"), ('"My Schema"', "My Schema"), ('"a.b"', "a.b")],
)
def test_a_schema_is_named_by_the_rules_of_the_database(written: str, name: str) -> None:
    privilege = read({"schema": written})
    assert privilege == Privilege("schema", name, "")
    assert read(privilege.as_json()) == privilege
    assert privilege.describe() == f"usage of the schema {privilege.object}"


@pytest.mark.parametrize("line", [{"schema": "a.b"}, {"schema": ""}, {"schema": '"open'}, {"schema": "two words"}])
def test_what_is_no_name_of_a_schema_is_refused(line: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="not the name of a schema"):
        read(line)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"schema": "a", "columns": ["b"]}, "`schema` has no `columns`"),
        ({"schema": "a", "where": {"b": 1}}, "`schema` has no rows"),
        ({"schema": "a", "usage": "b"}, "exactly one of select, insert, update, delete, execute, usage, schema"),
    ],
)
def test_a_schema_has_nothing_beside_its_name(line: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        read(line)


def test_to_use_a_schema_writes_nothing() -> None:
    grant = {"kind": "database", "connection": "c", "read_only": True, "privileges": [{"schema": "extensions"}]}
    assert DatabaseGrant.model_validate(grant).read_only


@pytest.mark.parametrize(
    ("written", "schema", "name"),
    [
        ("app.refresh(integer, text)", "app", "refresh(integer, text)"),
        ("refresh( )", "public", "refresh()"),
        ('"Odd (group)"."close(day)"(date)', "Odd (group)", '"close(day)"(date)'),
        ('app."a.b" (int)', "app", '"a.b"(int)'),
        ("app.f(numeric(8))", "app", "f(numeric(8))"),
    ],
)
def test_a_function_is_named_with_the_types_of_its_arguments(written: str, schema: str, name: str) -> None:
    assert parse_function(written) == (schema, name)
    privilege = read({"execute": written})
    assert read(privilege.as_json()) == privilege


@pytest.mark.parametrize("written", ["app.f", "f()x", "(int)", "f(int", "f(int);drop", '"open(int)'])
def test_what_is_no_function_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"not a function|not a name"):
        parse_function(written)
