"""What an admin declares in `vault/agents.yaml`: whose word is taken for who calls, and what each agent may open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.errors import UsageError
from orchestrator.grants.fields import Duration, Name
from orchestrator.pep.fetching import confidential

AgentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.@:/-]{0,127}$")]
"""What policies, the ledger and tokens call an agent."""

_LONGEST_SKEW = 60


Url = Annotated[str, AfterValidator(confidential)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Issuer(_Model):
    """Somebody who signs tokens in which agents are named; asked for keys, and for nothing else."""

    issuer: Annotated[str, Field(min_length=1)] = Field(description="The `iss` of its tokens, exactly.")
    audience: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] = Field(
        description="The `aud` of tokens that are meant for the orchestrator; one of these."
    )
    discovery: Literal["oidc", "oauth"] | None = Field(
        default=None, description="Its keys are found by its metadata: OpenID Connect Discovery, or RFC 8414."
    )
    jwks_url: Url | None = Field(default=None, description="Or at this URL.")
    jwks_file: Path | None = Field(default=None, description="Or in this file, beside this one if it is relative.")
    algorithms: Annotated[
        list[Literal["ES256", "ES384", "ES512", "EdDSA", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]],
        Field(min_length=1),
    ] = Field(default=["ES256", "EdDSA", "RS256"], description="What it signs with.")
    types: list[str] | None = Field(
        default=None, description="The `typ` that its tokens have, such as `at+jwt`. Default: any, or none."
    )
    clock_skew: Annotated[Duration, Field(le=_LONGEST_SKEW)] = Field(
        default=5, description="By how much clocks may differ; at most a minute."
    )
    longest_life: Duration = Field(
        default=86400, description="Tokens that are made for a longer time are refused, as are those that say no `iat`."
    )

    @model_validator(mode="after")
    def _keys_of_one_place(self) -> Self:
        ways = [self.discovery, self.jwks_url, self.jwks_file]
        if sum(way is not None for way in ways) != 1:
            raise ValueError("one of `discovery`, `jwks_url` and `jwks_file` says where the keys are")
        if self.discovery is not None:
            confidential(self.issuer)
        return self


class Identity(_Model):
    """What tells an agent: claims of a token, all of them exactly so; or the name in a client's certificate."""

    issuer: Name | None = Field(default=None, description="Whose token it is.")
    claims: Annotated[dict[str, Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = Field(
        default=None, description="Such as `sub: system:serviceaccount:agents:complaint`."
    )
    spiffe: Annotated[str, Field(pattern=r"^spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+$")] | None = Field(
        default=None, description="The SPIFFE id in the certificate with which it connects (mutual TLS)."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.spiffe is None) == (self.issuer is None) or (self.issuer is None) != (self.claims is None):
            raise ValueError("an identity is an `issuer` with `claims`, or a `spiffe` id")
        return self


class Agent(_Model):
    """Somebody who may open tasks."""

    identities: Annotated[list[Identity], Field(min_length=1)]
    may_open: Annotated[list[Name], Field(min_length=1)] = Field(description="Types of task, by the workflow's name.")
    max_open: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Calls that it may have open at once, over all its tasks and processes."
    )


class Service(_Model):
    """A service that agents use with tokens of ours: it may ask whether one still counts, and what it permits."""

    identities: Annotated[list[Identity], Field(min_length=1)]
    audience: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="The `aud` of the tokens that it may ask about; its own name where this is left out."
    )


class Agents(_Model):
    """The whole file."""

    version: Literal[1]
    issuers: dict[Name, Issuer] = Field(default_factory=dict)
    agents: Annotated[dict[AgentName, Agent], Field(min_length=1)]
    services: dict[AgentName, Service] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _each_is_somebody(self) -> Self:
        held: dict[tuple[object, ...], str] = {}
        for name, identity in self.identities():
            if identity.issuer is not None and identity.issuer not in self.issuers:
                raise ValueError(f"`{name}`: there is no issuer `{identity.issuer}`")
            key = (identity.issuer, identity.spiffe, *sorted((identity.claims or {}).items()))
            if held.setdefault(key, name) != name:
                raise ValueError(f"`{held[key]}` and `{name}` would be told by the same")
        if both := self.agents.keys() & self.services.keys():
            raise ValueError(f"`{sorted(both)[0]}` is an agent and a service")
        named = [issuer.issuer for issuer in self.issuers.values()]
        if len(set(named)) != len(named):
            raise ValueError("two issuers have the same `issuer`: it could not be told whose a token is")
        return self

    def identities(self) -> Iterator[tuple[str, Identity]]:
        """Every identity with the name of its agent or service."""
        declared: Mapping[str, Agent | Service] = {**self.agents, **self.services}
        for name, each in declared.items():
            for identity in each.identities:
                yield name, identity


def load_agents(file: Path) -> Agents:
    """The agents that a file declares. Raises UsageError with everything that is wrong with it."""
    from orchestrator.workflow.files import read_text
    from orchestrator.workflow.source import parse

    source = parse(read_text(file), str(file))
    agents = None
    if not source.problems:
        try:
            agents = Agents.model_validate(source.data)
        except ValidationError as error:
            for each in error.errors(include_url=False, include_input=False):
                place = f"`{'.'.join(map(str, each['loc']))}`: " if each["loc"] else ""
                source.report(each["loc"], place + each["msg"].removeprefix("Value error, "))
    if agents is None:
        raise UsageError("\n".join(each.said() for each in source.problems), hint="mend the file, then start again")
    return agents
