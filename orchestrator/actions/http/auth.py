"""How `http.request` shows who asks: one way for each request, and what of it is only known when it is sent."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote, unquote_plus

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from orchestrator.actions.base import LITERAL, GrantRef, Params, StepContext
from orchestrator.actions.references import credential_of, secret_of
from orchestrator.errors import StepFailed
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.redaction.redactor import MASK, Redactor
from orchestrator.secret import Secret

if TYPE_CHECKING:
    from orchestrator.client.possession import ProofKey

KINDS = ("token", "secret", "dynamic", "oauth2")
"""Kinds of grants that hold something that is sent as it is."""

SET_BY_US = frozenset({"authorization", "proxy-authorization", "host", "content-length", "transfer-encoding"})
"""Headers that `headers` does not set."""

HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OF_THE_CONNECTION = SET_BY_US - {"authorization"} | {"connection", "te", "trailer", "upgrade", "keep-alive"}
_PRINTABLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CANNOT = "it is empty, or has line breaks, control characters or what is not ASCII"


def _header_name(value: str) -> str:
    if not HEADER_NAME.fullmatch(value) or value.lower() in _OF_THE_CONNECTION:
        raise ValueError("it is not the name of a header that may hold a credential")
    return value


_PATTERN: JsonDict = {"pattern": f"^{HEADER_NAME.pattern}$"}
HeaderName = Annotated[str, AfterValidator(_header_name), Field(json_schema_extra=_PATTERN)]
ValueRef = Annotated[str, GrantRef(*KINDS), Field(pattern=r"^[a-z][a-z0-9_-]{0,62}(\.[^.\s]+)?$")]
FieldRef = Annotated[str, GrantRef(*KINDS), Field(pattern=r"^[a-z][a-z0-9_-]{0,62}\.[^.\s]+$")]


class Text(Params):
    """A constant text where a reference could stand."""

    model_config = ConfigDict(json_schema_extra=LITERAL)

    text: Annotated[str, Field(min_length=1, max_length=256)]


class Basic(Params):
    """A name and a password (RFC 7617)."""

    model_config = ConfigDict(json_schema_extra=LITERAL)

    username: Annotated[str, GrantRef(*KINDS, or_text=True), Field(min_length=1, max_length=256)] | Text = Field(
        description="`grant.field`; or a text, written `{text: a.b}` where it could be taken for one."
    )
    password: FieldRef = Field(description="`grant.field`.")

    @model_validator(mode="after")
    def _name_of_one_part(self) -> Basic:
        if (name := self.constant) is not None and (":" in name or _CONTROL.search(name)):
            raise ValueError("a `username` has no colon and no control characters")
        return self

    @property
    def constant(self) -> str | None:
        """The name, where the file says it."""
        if isinstance(self.username, Text):
            return self.username.text
        return None if GrantRef.is_reference(self.username) else self.username


class Auth(Params):
    """A credential of the step in one header, in one part of the query, or as a name with a password."""

    model_config = ConfigDict(json_schema_extra=LITERAL)

    header: HeaderName | None = Field(default=None, description="The header that holds `value`, such as `X-Api-Key`.")
    query: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None, description="The part of the query that holds `value`. Servers write URLs down: prefer `header`."
    )
    basic: Basic | None = Field(default=None, description="Name and password, as Authorization: Basic.")
    value: ValueRef | None = Field(
        default=None, description="`grant` or `grant.field` (default field: `token`); never an expression."
    )
    prefix: Annotated[str, Field(max_length=40, pattern=r"^[\x21-\x7e][\x20-\x7e]*$")] | None = Field(
        default=None, description="What stands before the value of a `header`, such as `Token ` with its space."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Auth:
        if len([way for way in (self.header, self.query, self.basic) if way is not None]) != 1:
            raise ValueError("name one way: `header`, `query` or `basic`")
        if (self.value is None) == (self.basic is None):
            raise ValueError("`header` and `query` have a `value`; `basic` has a `username` and a `password`")
        if self.prefix is not None and self.header is None:
            raise ValueError("`prefix` belongs to `header`")
        return self

    def view(self) -> JsonObject:
        """Which way, and of which grants; no value."""
        way = "header" if self.header else "query" if self.query else "basic"
        named: dict[str, JsonValue] = {"way": way}
        if self.header or self.query:
            named["name"] = self.header.lower() if self.header else self.query
        return {**named, "grants": list[JsonValue](self.grants())}

    def grants(self) -> list[str]:
        """Names of the grants that it is made of."""
        references = [self.value] if self.basic is None else [self.basic.password]
        if self.basic is not None and self.basic.constant is None:
            references.append(str(self.basic.username))
        return sorted({reference.partition(".")[0] for reference in references if reference})


@dataclass(frozen=True, slots=True)
class Private:
    """What of a request is secret: for the origin that it is sent to, and for no other."""

    headers: Mapping[str, Secret] = field(default_factory=dict)
    query: tuple[str, Secret] | None = None
    known: tuple[Secret, ...] = ()
    """The secrets as they were issued: what is looked for in what comes back."""
    key: ProofKey | None = None
    """What the token is bound to: each request is proven to be of whoever has it (RFC 9449)."""

    def proof(self, method: str, url: str, nonce: str) -> Mapping[str, str]:
        """The header with which one request is proven; none for what is bound to nothing."""
        if self.key is None:
            return {}
        return {"dpop": self.key.proof(method, url, token=self.known[0].reveal(), nonce=nonce)}

    def target(self, raw_path: bytes) -> bytes:
        """Path and query as they are sent."""
        if self.query is None:
            return raw_path
        name, value = self.query
        return raw_path + (b"&" if b"?" in raw_path else b"?") + f"{_quoted(name)}={_quoted(value.reveal())}".encode()

    def masked(self, location: str) -> str:
        """An address that the service answered with, without what it repeats of the credential."""
        path, mark, query = location.partition("?")
        if self.query is not None and mark:
            query, hash_, fragment = query.partition("#")
            parts = [
                part if not self._is_ours(part) else f"{part.partition('=')[0]}={MASK}" for part in query.split("&")
            ]
            location = f"{path}?{'&'.join(parts)}{hash_}{fragment}"
        return Redactor(self.known).redact(location)

    def without(self, url: str) -> str:
        """A URL of the same origin without the part of the query that is sent anyway."""
        path, mark, query = url.partition("?")
        if self.query is None or not mark:
            return url
        left = "&".join(part for part in query.split("&") if not self._is_ours(part))
        return f"{path}?{left}" if left else path

    def is_in(self, url: str) -> bool:
        """Whether a URL holds any of it."""
        return Redactor(self.known).find(url)

    def _is_ours(self, part: str) -> bool:
        return self.query is not None and unquote_plus(part.partition("=")[0]) == self.query[0]


def private_of(auth: Auth | None, bearer: str | None, context: StepContext) -> Private | None:
    """What is sent for the grants that are named. Raises StepFailed where what they hold cannot be sent so."""
    if bearer is not None:
        token = _checked(context, bearer, _TOKEN, "a bearer token", "it has white space or is not ASCII")
        if (key := _proof_key(bearer, context)) is not None:
            return Private({"authorization": Secret(f"DPoP {token.reveal()}")}, known=(token,), key=key)
        return Private({"authorization": Secret(f"Bearer {token.reveal()}")}, known=(token,))
    if auth is None:
        return None
    if auth.basic is not None:
        return _basic(auth.basic, context)
    assert auth.value is not None
    if auth.header is not None:
        value = _checked(context, auth.value, _PRINTABLE, "the value of a header", _CANNOT)
        return Private({auth.header: Secret(f"{auth.prefix or ''}{value.reveal()}")}, known=(value,))
    assert auth.query is not None
    value = secret_of(context, auth.value)
    if not value.reveal() or _CONTROL.search(value.reveal()):
        raise _unfit(auth.value, "a part of the query", "it is empty or has control characters")
    return Private(query=(auth.query, value), known=(value,))


def _proof_key(bearer: str, context: StepContext) -> ProofKey | None:
    """The key of a token that is bound to one."""
    credential = credential_of(context, bearer.partition(".")[0])
    held = credential.fields.get("dpop_key")
    if held is None or bearer.partition(".")[2] not in ("", "token"):
        return None
    from orchestrator.client.possession import ProofKey

    return ProofKey.from_jwk(held)


def _basic(basic: Basic, context: StepContext) -> Private:
    password = secret_of(context, basic.password)
    if _CONTROL.search(password.reveal()):
        raise _unfit(basic.password, "a password", "it has control characters")
    known, name = [password], basic.constant
    if name is None:
        username = secret_of(context, str(basic.username))
        known, name = [password, username], username.reveal()
        if not name or ":" in name or _CONTROL.search(name):
            raise _unfit(str(basic.username), "a user name", "it is empty, or has a colon or control characters")
    encoded = base64.b64encode(f"{name}:{password.reveal()}".encode()).decode()
    return Private({"authorization": Secret(f"Basic {encoded}")}, known=(*known, Secret(encoded)))


def _checked(context: StepContext, reference: str, pattern: re.Pattern[str], what: str, hint: str) -> Secret:
    value = secret_of(context, reference)
    if not pattern.fullmatch(value.reveal()):
        raise _unfit(reference, what, hint)
    return value


def _unfit(reference: str, what: str, hint: str) -> StepFailed:
    return StepFailed(f"what `{reference}` holds cannot be {what}", hint=hint)


def _quoted(text: str) -> str:
    return quote(text, safe="")
