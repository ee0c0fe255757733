"""What an admin declares under `issuers` in `vault/declarations.yaml`, as data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from orchestrator.errors import UsageError
from orchestrator.grants.fields import Name
from orchestrator.grants.scope import Scope
from orchestrator.issuers import aws, oauth2
from orchestrator.issuers.aws import AwsAccount
from orchestrator.issuers.oauth2 import OAuth2Server

DeclaredIssuer = OAuth2Server | AwsAccount
"""Somebody who is not Vault and issues credentials."""

Issuers = dict[Name, Annotated[DeclaredIssuer, Field(discriminator="kind")]]
"""By the name that grants use."""


def beyond(issuer: DeclaredIssuer, scope: Scope) -> str | None:
    """What a grant asks of an issuer although it is not declared for it; None where everything is."""
    return aws.beyond(issuer, scope) if isinstance(issuer, AwsAccount) else oauth2.beyond(issuer, scope)


def load_issuers(file: Path) -> Mapping[str, DeclaredIssuer]:
    """The `issuers` of a file, which may have other parts. Raises UsageError with everything that is wrong."""
    from orchestrator.workflow.files import read_text
    from orchestrator.workflow.source import parse

    source = parse(read_text(file), str(file))
    found: Issuers | None = None
    if not source.problems:
        declared = source.data.get("issuers", {}) if isinstance(source.data, dict) else None
        try:
            found = TypeAdapter(Issuers).validate_python(declared)
        except ValidationError as error:
            for each in error.errors(include_url=False, include_input=False):
                path = ("issuers", *each["loc"])
                source.report(path, f"`{'.'.join(map(str, path))}`: {each['msg'].removeprefix('Value error, ')}")
    if found is None:
        raise UsageError("\n".join(each.said() for each in source.problems), hint="mend the file, then start again")
    return {name: _beside(issuer, file) for name, issuer in found.items()}


def _beside(issuer: DeclaredIssuer, file: Path) -> DeclaredIssuer:
    """The same with the paths of its files as they are from here."""
    if isinstance(issuer, OAuth2Server) and issuer.ca is not None:
        return issuer.model_copy(update={"ca": file.parent / issuer.ca})
    return issuer
