"""The normalised form of a grant: what policies decide on, the ledger records and people read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.grants.aws.grant import AwsGrant
from orchestrator.grants.aws.session_policy import SessionPolicy, compile_policy, policy_from_json
from orchestrator.grants.certificate import CertificateGrant
from orchestrator.grants.compiled import CompiledGrant, compile_grant
from orchestrator.grants.fields import format_duration
from orchestrator.grants.models import AnyGrant, DatabaseGrant, DynamicGrant, SecretGrant, TokenGrant
from orchestrator.grants.oauth2 import OAuth2Grant
from orchestrator.grants.privileges import Bound, DeclaredPrivilege, Privilege, RowLimit
from orchestrator.jsontypes import JsonObject

_SAID = ("connection", "role", "issuer", "subject", "audience", "proof")
"""What some kinds of grant have, as one text."""

_OPTIONAL = (*_SAID, "profile", "on_expiry", "overlap")

OUTSIDE_VAULT = frozenset({"oauth2", "aws"})
"""Kinds that somebody else than Vault issues: nothing of them hangs from the step's token, or ends with it."""

STEP_TOKEN_MARGIN = 30
"""Seconds that a credential outlives the time-out of its step, so that the step can finish cleanly."""


@dataclass(frozen=True, slots=True)
class NarrowerForm:
    """A form of a database grant with fewer columns, as it is provisioned under a Vault role of its own."""

    name: str
    role: str
    resource: str
    privileges: tuple[Privilege, ...]


@dataclass(frozen=True, slots=True)
class Scope:
    """One grant, the same however it was written. Everything here may be shown to anyone.

    `resource` is the path in Vault that the credential comes from, or else its issuer; `verbs`, `keys` and
    `scopes` are what it opens there; `ttl` is in seconds.
    """

    name: str
    kind: str
    resource: str
    ttl: int
    connection: str | None = None
    role: str | None = None
    issuer: str | None = None
    """Who issues it, where that is not Vault: a name in declarations.yaml."""
    subject: str | None = None
    """On whose behalf."""
    audience: str | None = None
    proof: str | None = None
    """`dpop` where only the holder of a key can use it."""
    profile: str = "transit"
    """Who builds the claims of a token; see `TokenGrant.profile`."""
    keys: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    privileges: tuple[Privilege, ...] = ()
    details: tuple[JsonObject, ...] = ()
    """The `authorization_details` of a token; in a plan, as far as they are known."""
    parameters: JsonObject | None = None
    """What is sent to the path, or what a certificate is to say; in a plan, as far as it is known."""
    policy: SessionPolicy | None = None
    """What is left of the permissions of an AWS role; in a plan, as far as it is known."""
    thumbprint: str = ""
    """Of the key without which a token is of no use (`cnf.jkt` of RFC 9449); empty: anybody can use it."""
    bindings: tuple[str, ...] = ()
    """The values of the row limits that the run binds, in the order of `bound_limits`; none in a plan."""
    narrower: tuple[NarrowerForm, ...] = ()
    """What a policy may demand instead; none once it has been decided."""
    on_expiry: str = "fail"
    overlap: int = 0
    """Seconds for which an old credential stays valid beside the new one; 0 where none is issued anew."""

    @property
    def outside(self) -> bool:
        """Whether somebody else than Vault issues it."""
        return self.kind in OUTSIDE_VAULT

    def as_json(self) -> dict[str, object]:
        """A JSON object without the parts that do not apply."""
        parts: dict[str, object] = {"name": self.name, "kind": self.kind, "resource": self.resource, "ttl": self.ttl}
        for key in _SAID:
            if (value := getattr(self, key)) is not None:
                parts[key] = value
        if self.profile != "transit":
            parts["profile"] = self.profile
        if self.on_expiry != "fail":
            parts |= {"on_expiry": self.on_expiry, "overlap": self.overlap}
        if self.keys:
            parts["keys"] = list(self.keys)
        if self.scopes:
            parts["scopes"] = list(self.scopes)
        if self.details:
            parts["details"] = list(self.details)
        if self.parameters is not None:
            parts["parameters"] = dict(self.parameters)
        if self.policy is not None:
            parts |= self.policy.as_json()
        if self.thumbprint:
            parts["cnf"] = {"jkt": self.thumbprint}
        if self.privileges:
            parts["privileges"] = [_privilege_json(privilege) for privilege in self.bound_privileges()]
        if self.narrower:
            parts["narrower"] = [
                {
                    "name": form.name,
                    "privileges": [_privilege_json(each) for each in self.narrowed(form).bound_privileges()],
                }
                for form in self.narrower
            ]
        return parts

    def narrowed(self, form: NarrowerForm | None) -> Scope:
        """What the step gets: this form of the grant, or the whole of it (None)."""
        if form is None:
            return replace(self, narrower=())
        return replace(self, privileges=form.privileges, role=form.role, resource=form.resource, narrower=())

    def bound_privileges(self) -> tuple[Privilege, ...]:
        """The privileges with the values of this run in their row limits, as far as they are known."""
        if not self.bindings:
            return self.privileges
        values = iter(self.bindings)
        return tuple(
            replace(
                privilege,
                where=tuple(
                    RowLimit(limit.column, next(values)) if isinstance(limit.value, Bound) else limit
                    for limit in privilege.where
                ),
            )
            for privilege in self.privileges
        )

    def canonical(self) -> str:
        """The same as text, for digests."""
        return json.dumps(self.as_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def describe(self) -> str:
        """One line for a terminal: `database support: select (id) on shop.orders, 2m`, or `... as ROLE, 2m`."""
        again = ", issued anew when it cannot be renewed" if self.on_expiry == "reissue" else ""
        return f"{self._what()}, {format_duration(self.ttl)}{again}"

    def _what(self) -> str:
        match self.kind:
            case "database":
                return f"database {self.connection}{self._opens()}"
            case "secret":
                return f"secret {self.resource} [{', '.join(self.keys)}]"
            case "certificate":
                return f"certificate of {self.resource}{self._with_what()}"
            case "dynamic":
                return f"dynamic {self.resource}{self._with_what()}"
            case "token":
                return f"token for {self.audience} [{' '.join(self.scopes)}]{self._for_what()}"
            case "oauth2":
                return f"token of {self.issuer}{self._for_whom()} [{' '.join(self.scopes)}]{self._for_what()}"
            case "aws":
                return f"{self.role} of {self.issuer}: {self.policy.describe() if self.policy else 'anything'}"
            case _:
                return f"{self.kind} {self.resource}"

    def _for_whom(self) -> str:
        """The service that it is for, and on whose behalf."""
        service = f" for {self.audience}" if self.audience else ""
        return service + (f" on behalf of {self.subject}" if self.subject else "")

    def _with_what(self) -> str:
        """What is sent, as `with NAME VALUE, ...`."""
        words = (f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in (self.parameters or {}).items())
        return f" with {', '.join(words)}" if self.parameters else ""

    def _for_what(self) -> str:
        """Of each piece of the details its type, its actions and what it is for."""
        words = []
        for each in self.details:
            actions = each.get("actions")
            named = [*(actions if isinstance(actions, Sequence) else ()), each.get("identifier")]
            words.append(" ".join(str(word) for word in (each.get("type"), *named) if word is not None))
        return (f" ({'; '.join(words)})" if words else "") + (" bound to a key" if self.thumbprint else "")

    def _opens(self) -> str:
        if not self.privileges:
            return f" as {self.role}"
        return ": " + "; ".join(privilege.describe() for privilege in self.bound_privileges())


def scope_from_json(recorded: Mapping[str, Any]) -> Scope:
    """The scope that `as_json` recorded, with the values of its row limits as constants, and without narrower forms."""
    return Scope(
        name=str(recorded.get("name", "")),
        kind=str(recorded.get("kind", "")),
        resource=str(recorded.get("resource", "")),
        ttl=int(recorded.get("ttl", 0)),
        **{key: recorded[key] for key in _OPTIONAL if key in recorded},
        keys=tuple(recorded.get("keys", ())),
        scopes=tuple(recorded.get("scopes", ())),
        details=tuple(recorded.get("details", ())),
        parameters=recorded.get("parameters"),
        policy=policy_from_json(recorded) if recorded.get("kind") == "aws" else None,
        thumbprint=str(recorded.get("cnf", {}).get("jkt", "")),
        privileges=tuple(
            DeclaredPrivilege.model_validate(
                {each["verb"]: each["object"], **{key: each[key] for key in ("columns", "where") if key in each}}
            ).privilege()
            for each in recorded.get("privileges", ())
        ),
    )


def _privilege_json(privilege: Privilege) -> dict[str, object]:
    """What policies see of a privilege: `verb` and `object` beside the columns and the rows."""
    parts = privilege.as_json()
    return {"verb": privilege.verb, "object": parts.pop(privilege.verb), **parts}


def ttl_of(grant: AnyGrant, *, step_timeout: int) -> int:
    """Seconds that the credential lives: as declared, or the time-out of the step and a little more."""
    return grant.ttl if grant.ttl is not None else step_timeout + STEP_TOKEN_MARGIN


def compiled(grant: DatabaseGrant, *, step_timeout: int) -> CompiledGrant | None:
    """What provisioning installs for the whole of a database grant of a step; None where an admin maintains it."""
    return compiled_forms(grant, step_timeout=step_timeout).get(None)


def compiled_forms(grant: DatabaseGrant, *, step_timeout: int) -> dict[str | None, CompiledGrant]:
    """Everything that provisioning installs for a database grant: the whole (None), and its narrower forms by name.

    Their maximum TTL lets the step end in any case. Empty for a grant of a role that an admin maintains.
    """
    ttl = ttl_of(grant, step_timeout=step_timeout)
    max_ttl = max(ttl, step_timeout + STEP_TOKEN_MARGIN)
    forms = (None, *grant.narrower)
    made = {form: compile_grant(grant, ttl=ttl, max_ttl=max_ttl, narrower=form) for form in forms}
    return {form: each for form, each in made.items() if each is not None}


def normalise(name: str, grant: AnyGrant, *, step_timeout: int, place: str = "") -> Scope:
    """The scope of a declared grant. `step_timeout` is in seconds and gives the default TTL.

    `place` is `WORKFLOW/STEP`; it names what provisioning installs for this grant alone.
    """
    ttl = ttl_of(grant, step_timeout=step_timeout)
    match grant:
        case DatabaseGrant():
            forms = compiled_forms(grant, step_timeout=step_timeout)
            made = forms.pop(None, None)
            role = made.vault_role if made else str(grant.role)
            return Scope(
                name,
                "database",
                f"{grant.mount}/creds/{role}",
                ttl,
                connection=grant.connection,
                role=role,
                privileges=made.privileges if made else (),
                narrower=tuple(
                    NarrowerForm(str(form), each.vault_role, f"{grant.mount}/creds/{each.vault_role}", each.privileges)
                    for form, each in forms.items()
                ),
                **_expiry(grant),
            )
        case SecretGrant():
            return Scope(name, "secret", f"{grant.mount}/data/{grant.path}", ttl, keys=tuple(sorted(set(grant.keys))))
        case DynamicGrant():
            return Scope(name, "dynamic", grant.path, ttl, parameters=_sent(grant), **_expiry(grant))
        case CertificateGrant():
            return Scope(name, "certificate", grant.signed_at, ttl, parameters=grant.says(), **_expiry(grant))
        case TokenGrant():
            return Scope(
                name,
                "token",
                _signed_at(grant, name, place),
                ttl,
                audience=grant.audience,
                profile=grant.profile,
                scopes=tuple(sorted(set(grant.scope))),
                details=tuple(each.declared() for each in grant.details or ()),
            )
        case OAuth2Grant():
            return Scope(
                name,
                "oauth2",
                f"oauth2/{grant.issuer}",
                ttl,
                issuer=grant.issuer,
                subject=grant.subject,
                audience=grant.resource,
                proof=grant.proof,
                scopes=tuple(sorted(set(grant.scope))),
                details=tuple(each.declared() for each in grant.details or ()),
            )
        case AwsGrant():
            policy = compile_policy(grant.actions, grant.resources, grant.conditions, grant.wildcards)
            resource = f"aws/{grant.issuer}"
            return Scope(name, "aws", resource, ttl, role=grant.role, issuer=grant.issuer, policy=policy)


def _signed_at(grant: TokenGrant, name: str, place: str) -> str:
    """Where Vault signs a token; what is installed for one grant alone has its name."""
    match grant.profile:
        case "workflow":
            return f"sys/workflows/execute/step/{place}/{name}"
        case "identity":
            return f"identity/oidc/token/step.{place.replace('/', '.')}.{name}"
    return f"{grant.mount}/sign/{grant.key}"


def _sent(grant: DynamicGrant) -> JsonObject | None:
    if grant.parameters is None:
        return None
    return {name: list(value) if isinstance(value, list) else value for name, value in grant.parameters.items()}


def _expiry(grant: DatabaseGrant | DynamicGrant | CertificateGrant) -> dict[str, Any]:
    return {"on_expiry": grant.on_expiry, "overlap": grant.overlap} if grant.on_expiry != "fail" else {}
