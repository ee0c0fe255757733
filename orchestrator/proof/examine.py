"""Examining one issued credential, kind by kind. Synchronous: it runs in a thread while the lease is open."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from orchestrator.credentials.arrival import WAIT_SECONDS, Arrival
from orchestrator.errors import Unreachable
from orchestrator.grants.credential import Credential
from orchestrator.grants.models import TOKEN_KEY
from orchestrator.grants.privileges import qualified
from orchestrator.grants.scope import Scope
from orchestrator.grants.sql.row_security import ROW_SECURITY, hidden_rows, row_security, tables_of
from orchestrator.network.postgres import STRINGS, protected, refusal_hint, without_settings
from orchestrator.network.postgres_settings import Answer, beginning
from orchestrator.proof.comparison import Comparison, compare, expected
from orchestrator.proof.forbidden import Trial, Verdict, try_forbidden
from orchestrator.proof.holdings import holdings, share
from orchestrator.proof.report import GrantProof


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What the caller wants to know beside the proof itself."""

    tolerate: tuple[str, ...] = ()
    before: str | None = None
    """The role that was used before, for the comparison of the attack surface."""


def examine_database(
    step: str, scope: Scope, scope_role: str, credential: Credential, endpoint: str, wish: Examination
) -> GrantProof:
    """Log in with the credential and compare all that it may do with what was declared. Raises Unreachable."""
    try:
        with _session(step, credential, endpoint) as session:
            _begin(session, f"step `{step}`, grant `{scope.name}`")
            comparison = _compared(session, scope, scope_role, wish)
            return GrantProof(
                step=step,
                grant=scope.name,
                declared=scope.describe(),
                comparison=comparison,
                trials=tuple(try_forbidden(session, scope.bound_privileges(), scope_role, comparison.excess)),
                former=wish.before or "",
                before=share(session, wish.before) if wish.before else None,
                after=share(session),
                notes=tuple(_hidden(session, scope, scope_role)),
            )
    except psycopg.Error as error:
        raise Unreachable(
            f"step `{step}`, grant `{scope.name}`: the proof could not be made: "
            f"{error.diag.message_primary or type(error).__name__}",
            hint=refusal_hint(error)
            or "is the endpoint of the connection right, and does the role named with --before exist?",
        ) from None


def _hidden(session: psycopg.Connection, scope: Scope, scope_role: str) -> Iterator[str]:
    """Privileges that show no row: what the credential may do is right, and it will seem as if the table were empty."""
    tables = tables_of(scope.privileges)
    wanted = {"schemas": [schema for schema, _ in tables], "names": [name for _, name in tables]}
    security = row_security(session.execute(ROW_SECURITY, wanted))
    for hidden in hidden_rows(scope.privileges, security, [scope_role]):
        yield f"{hidden}: {hidden.remedy(scope_role)}"


def _session(step: str, credential: Credential, endpoint: str) -> psycopg.Connection:
    """A session of the login, which a standby may not know yet."""
    login = credential.fields["username"].reveal()
    arrival = Arrival.of(login, seconds=WAIT_SECONDS)
    while True:
        try:
            return psycopg.connect(
                protected(without_settings(endpoint)[0], issued=True),
                user=login,
                password=credential.fields["password"].reveal(),
                application_name=f"orchestrator prove {step}",
                connect_timeout=10,
                client_encoding="UTF8",
                autocommit=True,
            )
        except psycopg.OperationalError as error:
            time.sleep(arrival.pause(error))


def _begin(session: psycopg.Connection, what: str) -> None:
    """One transaction for the whole proof, which nothing commits: each trial in it is taken back by itself.

    `read_only` of a grant is a default that any session may change, so that what is tried does not rely on it; at a
    standby it cannot be otherwise.
    """
    if session.info.server_version < _MIN_VERSION:
        raise Unreachable(
            f"{what}: the proof could not be made: the server is PostgreSQL {session.info.server_version // 10000}",
            hint="what a membership gives is told from 16 on; is the endpoint the server that was provisioned?",
        )
    try:
        begun = session.execute(beginning(session, _SETTINGS, read_only=False))
    except psycopg.errors.FeatureNotSupported:
        session.execute("ROLLBACK")
        begun = session.execute(beginning(session, _SETTINGS, read_only=True))
    begun.nextset()
    if problem := Answer.of(session, begun.fetchone()).problem():
        raise Unreachable(f"{what}: the proof could not be made: {problem[0]}", hint=problem[1])


_MIN_VERSION = 160000

_SETTINGS = {
    "search_path": "pg_catalog, pg_temp",
    "quote_all_identifiers": "off",
    STRINGS: "on",
    "default_transaction_isolation": "read committed",
}


def _compared(session: psycopg.Connection, scope: Scope, scope_role: str, wish: Examination) -> Comparison:
    database = session.info.dbname
    names = {scope_role, database}
    for each in scope.privileges:
        names |= {each.schema, each.name, *each.columns}
    rows = session.execute("SELECT name, quote_ident(name) FROM unnest(%s::text[]) AS of (name)", [list(names)])
    quoted = {str(name): str(text) for name, text in rows}
    declared = expected(
        scope.privileges,
        scope_role=scope_role,
        database=database,
        signatures=_signatures(session, scope),
        quote=quoted.__getitem__,
    )
    return compare(holdings(session), declared, tolerate=wish.tolerate)


def _signatures(session: psycopg.Connection, scope: Scope) -> dict[str, str]:
    """As the server writes them, by their declared text. What the login cannot reach it does not hold either."""
    found = {}
    for privilege in scope.privileges:
        if privilege.verb == "execute":
            name = qualified(privilege.schema, privilege.name, function=True)
            try:
                with session.transaction():
                    row = session.execute(_SIGNATURE, [name]).fetchone()
            except psycopg.errors.InsufficientPrivilege:
                continue
            if row is not None:
                found[name] = str(row[0])
    return found


_SIGNATURE = (
    "SELECT format('%%I.%%I(%%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid))"
    " FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = to_regprocedure(%s)"
)


def examine_secret(step: str, scope: Scope, credential: Credential) -> GrantProof:
    """See that the step is handed the declared keys of a secret and no others."""
    more = sorted(set(credential.fields) - set(scope.keys))
    trial = _trial("see a key that was not declared", "" if more else f"it is handed {', '.join(scope.keys)} only")
    return GrantProof(step=step, grant=scope.name, declared=scope.describe(), trials=(trial,))


def examine_token(step: str, scope: Scope, credential: Credential, jwks: Mapping[str, Any]) -> GrantProof:
    """Verify a JWT as its service would, and see that it serves no other audience and no broader scope."""
    from joserfc import jwt
    from joserfc.errors import JoseError
    from joserfc.jwk import KeySet

    keys = KeySet.import_key_set({"keys": [dict(key) for key in jwks["keys"]]})
    token = jwt.decode(credential.fields["token"].reveal(), keys, algorithms=["ES256", "EdDSA"])

    def refusal(**wanted: Any) -> str:
        try:
            jwt.JWTClaimsRegistry(**wanted).validate(token.claims)
        except JoseError as error:
            return str(error)
        return ""

    own = refusal(aud={"essential": True, "value": scope.audience})
    other = refusal(aud={"essential": True, "value": f"not-{scope.audience}"})
    held = set(str(token.claims.get("scope", "")).split())
    more = sorted(held - set(scope.scopes))
    trials: tuple[Trial, ...] = (
        _trial("serve as a token for another audience", other),
        _trial("hold a scope that was not declared", "" if more else f"scope is `{token.claims.get('scope')}`"),
        _trial("live longer than its step", _lifetime(token.claims, scope.ttl)),
    )
    if scope.details:
        as_bound = token.claims.get("authorization_details") == list(scope.details)
        trials += (_trial("be for anything beyond its details", "it has those that were bound" if as_bound else ""),)
    return GrantProof(step=step, grant=scope.name, declared=scope.describe(), trials=trials, refused=own)


def _lifetime(claims: Mapping[str, Any], ttl: int) -> str:
    lives = int(claims["exp"]) - int(claims["iat"])
    return f"it lives {lives}s of at most {ttl}s" if lives <= ttl else ""


def _trial(what: str, refusal: str) -> Trial:
    return Trial(what, Verdict.REFUSED if refusal else Verdict.ALLOWED, refusal or "nothing spoke against it")


def other_paths(own: Sequence[Scope], mine: str, all_scopes: Sequence[Scope]) -> list[tuple[str, str]]:
    """Paths in Vault that the token of a step must not open: method and path."""
    opened = {scope.resource for scope in own}
    foreign = sorted({scope.resource for scope in all_scopes if not scope.outside} - opened)
    ways: list[tuple[str, str]] = [
        ("post" if "/sign/" in path or "/execute/" in path else "get", path) for path in foreign
    ]
    for scope in own:
        if scope.kind == "database":
            ways += [("get", scope.resource.rpartition("/")[0] + "/orchestrator-sweep-probe")]
            ways += [("post", scope.resource.replace("/creds/", "/roles/", 1))]
        if scope.kind == "secret":
            ways += [("get", scope.resource + "-other"), ("post", scope.resource)]
        if scope.kind == "token" and scope.profile == "identity":
            ways += [("get", scope.resource + "-other"), ("get", scope.resource.replace("/token/", "/role/", 1))]
        elif scope.kind == "token" and scope.profile == "workflow":
            ways += [("post", scope.resource + "-other"), ("post", f"transit/sign/{TOKEN_KEY}")]
            ways += [
                (method, scope.resource.replace("/execute/", f"/{what}/", 1))
                for method, what in (("get", "manage"), ("post", "manage"), ("post", "trace"))
            ]
        elif scope.kind == "token":
            ways += [
                ("post", scope.resource + "-other"),
                ("get", scope.resource.replace("/sign/", "/export/signing-key/", 1)),
            ]
    return [
        *ways,
        ("post", "auth/token/create"),
        ("get", f"sys/policies/acl/{mine}"),
        ("post", f"sys/policies/acl/{mine}"),
        ("get", "sys/mounts"),
        ("put", "sys/leases/revoke-prefix/database"),
        ("get", "identity/entity/id"),
    ]
