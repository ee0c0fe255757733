"""`http.request`: one HTTP request, with the step's own credential where it has one."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import parse_qsl, urlencode

from pydantic import AfterValidator, Field, PrivateAttr, model_validator
from pydantic import JsonValue as Json

from orchestrator.actions.base import GrantRef, LocalPath, OutputType, Params, StepContext
from orchestrator.actions.http.answer import check_status, output_of
from orchestrator.actions.http.auth import HEADER_NAME, KINDS, SET_BY_US, Auth, private_of
from orchestrator.actions.http.transfer import MAX_REDIRECTS, Incoming, Outgoing, transfer
from orchestrator.actions.http.trust import Authorities, authorities, trusting
from orchestrator.actions.references import credential_of, redacted, redactor_for, within_deadline
from orchestrator.errors import StepFailed
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.network.origins import is_confidential, origin, parse

_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]*")
Scalar = str | int | float | bool


def _url(value: str) -> str:
    parse(value)
    return value


def _headers(value: dict[str, str]) -> dict[str, str]:
    if taken := sorted(SET_BY_US.intersection(name.lower() for name in value)):
        raise ValueError(
            f"{', '.join(taken)} cannot be set here; a token comes from `bearer`, any other credential from `auth`"
        )
    if not all(HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(text) for name, text in value.items()):
        raise ValueError("a header is a plain name and one line of printable ASCII")
    return value


class RequestParams(Params):
    """One request. Header and query values are fixed by the workflow; a credential comes from `bearer` or `auth`."""

    output_types: ClassVar[Mapping[str, OutputType]] = {"status": "int", "headers": "map"}
    output_descriptions: ClassVar[Mapping[str, str]] = {
        "status": "The status of the answer.",
        "headers": "Those of its headers that may be shown, by their names in lower case.",
        "body": "Its body: JSON where the answer says that it is that, else text.",
    }
    fixed: ClassVar[frozenset[str]] = frozenset(
        {"method", "body", "follow_redirects", "redirect_origins", "auth", "ca", "certificate"}
    )
    literal: ClassVar[frozenset[str]] = frozenset({"auth", "certificate"})
    urls: ClassVar[frozenset[str]] = frozenset({"url"})

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] = Field(
        default="GET", description="What is asked."
    )
    url: Annotated[str, AfterValidator(_url)] = Field(description="An absolute http or https URL.")
    headers: Annotated[dict[str, str], AfterValidator(_headers)] = Field(
        default_factory=dict, description="Headers of the request; none that holds a credential."
    )
    query: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict, description="Added to the URL's own query.")
    json_: Json = Field(default=None, alias="json", description="A JSON body.")
    form: dict[str, Scalar] | None = Field(default=None, description="A form body (x-www-form-urlencoded).")
    body: str | None = Field(default=None, description="A body as it is; set `content-type` in `headers`.")
    bearer: Annotated[str, GrantRef(*KINDS)] | None = Field(
        default=None, description="`grant` or `grant.field` (default field: `token`), sent as Authorization: Bearer."
    )
    auth: Auth | None = Field(
        default=None,
        description="Instead of `bearer`: a credential in any header, in the query, or as name and password.",
        examples=[
            {"header": "X-Api-Key", "value": "api.key"},
            {"query": "api_key", "value": "api.key"},
            {"basic": {"username": "api.user", "password": "api.password"}},
        ],
    )
    ca: LocalPath | None = Field(
        default=None,
        description="A file of certificates in PEM: the authorities that are trusted instead of the system's, for the "
        "origin of `url`. Policies see the file and its SHA-256.",
    )
    certificate: Annotated[str, GrantRef("certificate"), Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")] | None = Field(
        default=None,
        description="A grant of the kind `certificate`, which the origin of `url` is shown (mutual TLS); no other is.",
    )
    expect: Annotated[list[Annotated[int, Field(ge=100, le=599)]], Field(min_length=1)] | None = Field(
        default=None, description="The statuses that are a success. Default: every 2xx."
    )
    max_bytes: Annotated[int, Field(gt=0)] = Field(default=5_000_000, description="The longest response body.")
    follow_redirects: bool = Field(default=False, description=f"Follow at most {MAX_REDIRECTS}, on the same origin.")
    redirect_origins: list[Annotated[str, AfterValidator(origin)]] = Field(
        default_factory=list,
        description="Other origins that may be redirected to, such as `https://files.example`. Neither the credential "
        "nor a body nor headers go there.",
    )

    @classmethod
    def output_keys(cls, given: Mapping[str, Any]) -> frozenset[str]:
        """Those of every answer."""
        return frozenset(("status", "headers", "body"))

    @model_validator(mode="after")
    def _consistent(self) -> RequestParams:
        bodies = {"json_", "form", "body"} & self.model_fields_set
        if len(bodies) > 1:
            raise ValueError("a request has at most one of `json`, `form` and `body`")
        if self.redirect_origins and not self.follow_redirects:
            raise ValueError(
                "`redirect_origins` says where `follow_redirects: true` may lead; without it nothing is followed"
            )
        if self.bearer is not None and self.auth is not None:
            raise ValueError("a request shows one credential: `bearer` or `auth`")
        if (self.bearer is not None or self.auth is not None) and not is_confidential(self.url):
            raise ValueError("a credential is not sent over plain http, except to this machine itself; use https")
        if self.auth is not None and (twice := self._twice(self.auth)):
            raise ValueError(f"`{twice}` is set by `auth` and once more")
        if not self.url.startswith("https:") and (given := self.model_fields_set & {"ca", "certificate"}):
            raise ValueError(f"`{min(given)}` belongs to https")
        return self

    def _twice(self, auth: Auth) -> str | None:
        """What holds the credential and is set beside it, too: which of the two counts would be the service's guess."""
        if auth.header is not None:
            return auth.header if auth.header.lower() in map(str.lower, self.headers) else None
        known = {*self.query, *(name for name, _ in parse_qsl(parse(self.url).query, keep_blank_values=True))}
        return auth.query if auth.query in known else None

    _authorities: Authorities | None = PrivateAttr(default=None)

    @property
    def authorities(self) -> Authorities | None:
        """Those of `ca`, read once, so that they are the ones that policies were shown. Raises StepFailed."""
        if self._authorities is None and self.ca is not None:
            self._authorities = authorities(self.ca)
        return self._authorities


class Request:
    """Output: `{"status", "headers", "body"}`; the body is JSON where the response says so, else text.

    Neither proxies nor credentials are taken from the environment. Certificates are checked against the
    system's authorities, or those of `ca`. Kinds: `connection`, `timeout`, `http_status`, `rate_limited`,
    `unavailable`, `output`.
    """

    summary: ClassVar[str] = "Send an HTTP request."
    params: ClassVar[type[Params]] = RequestParams

    def view(self, params: RequestParams) -> JsonObject:
        """Method, origin, path, whether and where it goes when it is redirected, the way of the credential, and who is
        trusted; no query, no contents. Raises StepFailed where the file of `ca` holds no certificates."""
        view: dict[str, JsonValue] = {
            "method": params.method,
            "origin": origin(params.url),
            "path": parse(params.url).path or "/",
            "follow_redirects": params.follow_redirects,
            "redirect_origins": sorted(set(params.redirect_origins)),
        }
        if params.bearer is not None:
            view["auth"] = {"way": "bearer", "grants": [params.bearer.partition(".")[0]]}
        elif params.auth is not None:
            view["auth"] = params.auth.view()
        if params.authorities is not None:
            view["ca"] = params.authorities.view()
        if params.certificate is not None:
            view["certificate"] = params.certificate
        return view

    async def run(self, params: RequestParams, context: StepContext) -> JsonValue:
        """Send it once, follow redirects only where `follow_redirects` says so, and return what the answer holds.

        Raises StepFailed with the kinds of this action. Whether it is sent again is for the step's `retry` to say.
        """
        request = _outgoing(params, context)
        async with within_deadline(context, origin(params.url)):
            response = await _exchange(request, params, context)
        check_status(
            response,
            params.method,
            params.expect,
            now=datetime.now(UTC),
            redact=lambda text: redacted(context, text),
        )
        return output_of(response, request.private)


def _outgoing(params: RequestParams, context: StepContext) -> Outgoing:
    import httpx

    headers = dict(params.headers)
    declared = {name.lower() for name in headers}
    content, content_type = _content(params)
    if content_type and "content-type" not in declared:
        headers["content-type"] = content_type
    try:
        url = httpx.URL(params.url)
        same = origin(str(url)) == origin(params.url)
    except (ValueError, httpx.InvalidURL):
        same = False
    if not same:
        raise StepFailed("the URL can be read in more than one way", hint="write it plainly: scheme, host, port, path")
    if params.query:
        url = url.copy_merge_params(params.query)
    return Outgoing(params.method, str(url), headers, content, private_of(params.auth, params.bearer, context))


def _content(params: RequestParams) -> tuple[bytes | None, str]:
    if "json_" in params.model_fields_set:
        return json.dumps(params.json_, ensure_ascii=False, allow_nan=False).encode(), "application/json"
    if params.form is not None:
        return urlencode(params.form).encode(), "application/x-www-form-urlencoded"
    return (None if params.body is None else params.body.encode()), ""


async def _exchange(request: Outgoing, params: RequestParams, context: StepContext) -> Incoming:
    import httpx

    from orchestrator.network.http_client import http_client

    where = origin(request.url)
    try:
        async with AsyncExitStack() as clients:

            async def client(trust: ssl.SSLContext) -> httpx.AsyncClient:
                return await clients.enter_async_context(http_client(context.remaining(), trust=trust))

            shown = None if params.certificate is None else credential_of(context, params.certificate)
            own = elsewhere = await client(trusting(params.authorities, shown))
            if params.redirect_origins and (params.authorities is not None or shown is not None):
                elsewhere = await client(trusting(None))
            redirects = MAX_REDIRECTS if params.follow_redirects else 0
            return await transfer(
                own,
                request,
                redirects=redirects,
                max_bytes=params.max_bytes,
                origins=params.redirect_origins,
                elsewhere=elsewhere,
            )
    except httpx.TimeoutException:
        raise StepFailed(
            f"{where} did not answer in time", kind="timeout", hint="raise `timeout` of the step"
        ) from None
    except httpx.HTTPError as error:
        text = " ".join(redactor_for(context).redact(str(error)).split())[:300] or type(error).__name__
        raise StepFailed(f"no answer from {where}: {text}", kind="connection", hint="is the address right?") from None
