"""Whether an event is one of OCSF's, by the schema itself: attributes, their types and values, and what is required."""

from __future__ import annotations

from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema


@cache
def _schema(version: str) -> OcsfJsonSchemaEmbedded:
    return OcsfJsonSchemaEmbedded(get_ocsf_schema(version))


@cache
def _validator(version: str, class_uid: int, profiles: tuple[str, ...]) -> Draft202012Validator:
    schema = _schema(version)
    return Draft202012Validator(schema.get_class_schema(schema.lookup_class_name_from_uid(class_uid), list(profiles)))


def problems(event: dict[str, Any]) -> list[str]:
    """What is wrong with an event of the class and the schema that it names, use of what is deprecated among it."""
    metadata = event["metadata"]
    validator = _validator(metadata["version"], event["class_uid"], tuple(metadata.get("profiles", ())))
    found = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(event)]
    known = validator.schema["properties"]
    return found + [f"{name} is deprecated" for name in event if known.get(name, {}).get("deprecated")]


def captions(event: dict[str, Any]) -> dict[str, str]:
    """What the schema calls that which the event names by number."""
    schema = _schema(event["metadata"]["version"])
    name = schema.lookup_class_name_from_uid(event["class_uid"])
    of = schema.schema.schema["classes"][name]["attributes"]
    return {
        told: of[number]["enum"][str(event[number])]["caption"]
        for number, told in (
            ("activity_id", "activity_name"),
            ("type_uid", "type_name"),
            ("class_uid", "class_name"),
            ("category_uid", "category_name"),
            ("severity_id", "severity"),
            ("status_id", "status"),
        )
    }
