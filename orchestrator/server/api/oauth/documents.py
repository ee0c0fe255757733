"""What is sent and answered at the token endpoint and beside it, as models for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.server.api.callers import LONGEST_TOKEN
from orchestrator.server.api.oauth.forms import MOST_PARAMETERS

_FORM = ConfigDict(json_schema_extra={"additionalProperties": {"type": "string"}, "maxProperties": MOST_PARAMETERS})
"""What is not known is ignored, and is there once (RFC 6749, 3.2)."""

Token = Annotated[str, Field(min_length=1, max_length=LONGEST_TOKEN)]


class TokenRequest(BaseModel):
    """Exchange the agent's token for that of a tool (RFC 8693, 2.1)."""

    model_config = _FORM

    grant_type: Literal["urn:ietf:params:oauth:grant-type:token-exchange"]
    subject_token: Token = Field(description="The agent's JWT, of an issuer that is trusted.")
    subject_token_type: Literal[
        "urn:ietf:params:oauth:token-type:jwt",
        "urn:ietf:params:oauth:token-type:access_token",
        "urn:ietf:params:oauth:token-type:id_token",
    ]
    authorization_details: Annotated[str, Field(min_length=1)] = Field(
        description='`[{"type": "tool_call", "task": ID, "tool": NAME, "arguments": {...}}]`, as JSON (RFC 9396).'
    )
    requested_token_type: Literal["urn:ietf:params:oauth:token-type:access_token"] | None = None
    scope: str | None = Field(default=None, description="Of the scopes of the tool's grant those that are wanted.")
    audience: list[str] = Field(default_factory=list, description="Where it is given it is that of the tool's grant.")
    resource: list[str] = Field(default_factory=list, description="The same as a URI (RFC 8707).")
    client_id: str | None = Field(default=None, description="The agent's name, if it is given at all.")


class TokenDocument(BaseModel):
    """The token of the tool, told this once (RFC 8693, 2.2.1)."""

    access_token: str
    issued_token_type: Literal["urn:ietf:params:oauth:token-type:access_token"]
    token_type: Literal["Bearer", "DPoP"]
    expires_in: int
    scope: str
    authorization_details: list[dict[str, Any]] = Field(description="Those of the token (RFC 9396, 7).")


class RevocationRequest(BaseModel):
    """Give a token back (RFC 7009, 2.1)."""

    model_config = _FORM

    token: Annotated[str, Field(min_length=1)]
    token_type_hint: str = ""


class RevocationDocument(BaseModel):
    """It is gone, or never was one."""


class OAuthErrorDocument(BaseModel):
    """An error of RFC 6749, 5.2. `problem` has the type of the API's problem that it is, where it is one."""

    model_config = ConfigDict(extra="allow")

    error: str
    error_description: str
    problem: str | None = None
