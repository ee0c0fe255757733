"""What a client wants of the token endpoint (RFC 8693, 2.1): the token of one tool, within what its grant says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from orchestrator.grants.scope import Scope
from orchestrator.grants.wish import Wish
from orchestrator.jsontypes import JsonValue
from orchestrator.pep.errors import TokenRefused
from orchestrator.pep.jwt.strict import json_object
from orchestrator.planning.requests import scopes_of
from orchestrator.server.api.callers import LONGEST_TOKEN
from orchestrator.server.api.oauth.errors import Code, OAuthError
from orchestrator.server.api.oauth.forms import Form
from orchestrator.workflow.models.workflow import Workflow

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - the name of a type
SUBJECT_TYPES = ("urn:ietf:params:oauth:token-type:jwt", ACCESS_TOKEN, "urn:ietf:params:oauth:token-type:id_token")
"""RFC 8693, 3: what an agent shows is a JWT whatever its issuer calls it."""

DETAILS_TYPE = "tool_call"
"""The one `type` of `authorization_details` (RFC 9396, 2) that can be asked for."""

SEVERAL = frozenset({"audience", "resource"})
"""May be there more than once (RFC 8693, 2.1; RFC 8707, 2)."""

_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request. `scopes` None: whatever the tool's grant says."""

    subject_token: str = field(repr=False)
    client_id: str | None
    task: str
    tool: str
    arguments: Mapping[str, JsonValue]
    scopes: tuple[str, ...] | None
    targets: tuple[str, ...]


def exchange_of(form: Form) -> Exchange:
    """What the parameters say. Raises OAuthError."""
    if form.needed("grant_type") != GRANT_TYPE:
        raise OAuthError(Code.UNSUPPORTED_GRANT_TYPE, f"the one grant type is {GRANT_TYPE}")
    token = form.needed("subject_token")
    if len(token) > LONGEST_TOKEN:
        raise OAuthError(Code.INVALID_REQUEST, f"the subject_token is longer than {LONGEST_TOKEN} characters")
    if form.needed("subject_token_type") not in SUBJECT_TYPES:
        raise OAuthError(Code.INVALID_REQUEST, f"the subject_token_type is one of {', '.join(SUBJECT_TYPES)}")
    if (form.one("requested_token_type") or ACCESS_TOKEN) != ACCESS_TOKEN:
        raise OAuthError(Code.INVALID_REQUEST, f"the requested_token_type is {ACCESS_TOKEN}")
    if form.one("actor_token") is not None or form.one("actor_token_type") is not None:
        raise OAuthError(Code.INVALID_REQUEST, "who acts is said by `act` of the subject_token, and by no actor_token")
    task, tool, arguments = _tool_call(form.one("authorization_details"))
    scope = form.one("scope")
    if scope is not None and not _SCOPE.fullmatch(scope):
        raise OAuthError(Code.INVALID_SCOPE, "the scope is not written as one")
    targets = (*form.several("audience"), *(_resource(each) for each in form.several("resource")))
    scopes = None if scope is None else tuple(scope.split(" "))
    return Exchange(token, form.one("client_id"), task, tool, arguments, scopes, targets)


def token_scope(workflow: Workflow, tool: str) -> Scope:
    """The grant of a tool that hands a token of ours over. Raises OAuthError for any other."""
    declared = workflow.tools.get(tool)
    if declared is None:
        raise OAuthError(Code.INVALID_DETAILS, f"the task has no tool `{tool[:64]}`")
    scope = next((each for each in scopes_of(workflow, tool) if each.name == declared.hand_over), None)
    if scope is None or scope.kind != "token":
        raise OAuthError(Code.INVALID_DETAILS, f"the tool `{tool}` hands over no token")
    return scope


def agreed(scope: Scope, wanted: Exchange, thumbprint: str) -> Wish:
    """What is wanted, where the grant says as much or more. Raises OAuthError."""
    if any(each != scope.audience for each in wanted.targets):
        raise OAuthError(Code.INVALID_TARGET, "the token of this tool is for another service")
    if thumbprint and scope.profile != "transit":
        raise OAuthError(
            Code.INVALID_PROOF,
            f"a token of the profile {scope.profile} cannot be bound to a key: its claims are fixed in the server",
        )
    scopes = None if wanted.scopes is None or set(wanted.scopes) == set(scope.scopes) else wanted.scopes
    wish = Wish(scopes, thumbprint)
    try:
        wish.applied(scope)
    except ValueError as error:
        raise OAuthError(Code.INVALID_SCOPE, str(error)) from error
    return wish


def _tool_call(text: str | None) -> tuple[str, str, Mapping[str, JsonValue]]:
    """The one element of `authorization_details`, of which everything has to be understood (RFC 9396, 5)."""
    if text is None:
        raise _not_details(f'say what for: [{{"type": "{DETAILS_TYPE}", "task": "...", "tool": "..."}}]')
    try:
        wrapped = json_object(b'{"list":' + text.encode() + b"}")
    except (TokenRefused, UnicodeEncodeError):
        raise _not_details("it is no JSON, or has a member twice, or is too deep") from None
    listed = wrapped.get("list")
    if set(wrapped) != {"list"} or not isinstance(listed, list) or len(listed) != 1 or not isinstance(listed[0], dict):
        raise _not_details("it is to be a list of one object")
    (element,) = listed
    if element.get("type") != DETAILS_TYPE:
        raise _not_details(f"its type is to be {DETAILS_TYPE}")
    if not {"type", "task", "tool"} <= set(element) <= {"type", "task", "tool", "arguments"}:
        raise _not_details("it has task and tool, and arguments, and nothing else")
    task, tool, arguments = element["task"], element["tool"], element.get("arguments", {})
    if not (isinstance(task, str) and isinstance(tool, str) and isinstance(arguments, dict)):
        raise _not_details("task and tool are texts, and arguments is an object")
    return task, tool, arguments


def _resource(value: str) -> str:
    """An absolute URI without a fragment (RFC 8707, 2)."""
    try:
        parts = urlsplit(value)
    except ValueError:
        parts = urlsplit("")
    if not parts.scheme or "#" in value or not (parts.netloc or parts.path) or not value.isprintable():
        raise OAuthError(Code.INVALID_TARGET, "a resource is an absolute URI without a fragment")
    return value


def _not_details(why: str) -> OAuthError:
    return OAuthError(Code.INVALID_DETAILS, f"authorization_details: {why}")
