"""The SQL that provisioning installs: objects of the schema `orchestrator`, and the statements of Vault's roles."""

from __future__ import annotations

from psycopg import sql

from orchestrator.grants.compiled import CompiledGrant
from orchestrator.grants.policy_names import BrokerDuty
from orchestrator.provision.database.revocation import KEEP_OBJECTS, REVOCATION_FUNCTIONS

USERNAME_TEMPLATE = '{{ printf "orc_%s_%s" .DisplayName (random 8) | replace "orc_token-" "orc_" | truncate 63 }}'
"""Vault puts `token-` before the display name of a token. Only that one goes: step keys may have it in them as well,
but no underscore, so what is replaced can stand nowhere but at the beginning."""

DUTY_ROLES: dict[BrokerDuty, str] = {"sweep": "orchestrator_sweeper", "bind": "orchestrator_binder"}
"""The NOLOGIN role of each duty of the broker."""

DUTY_FUNCTIONS: dict[BrokerDuty, tuple[str, ...]] = {
    "sweep": ("ephemeral_roles(text)", "sweep(text)", "sweep_expired()"),
    "bind": ("bind(name, integer, text)",),
}
"""What the role of each duty may call."""

BOUND = "bound(integer)"
"""What a scope role with row limits may call: it tells a session its own values and nothing else."""

EVERYONE = "everyone(oid)"
"""What the policy for everybody else asks: whether nobody but us has made a permissive policy on a table.

It is called immutable so that the server asks once, when it plans, and plans then as if there were no policy: with a
condition of ours in it, no index would serve for what is not leakproof. Making a policy has every plan of the table
made anew, under a lock of the table, so the answer is right until then (PostgreSQL manual, 36.7 and 39.5). It asks by
a volatile function, which sees what was committed while that lock was waited for. Only a transaction whose snapshot is
older (REPEATABLE READ) may go on without the new policy.
"""

OTHER_POLICIES = "other_policies(oid)"
"""What `everyone` asks by."""

FOR_EVERYBODY = (EVERYONE,)
"""What PUBLIC may call: it tells what everybody may read in the catalog."""

BINDING_TABLE = """\
CREATE TABLE IF NOT EXISTS orchestrator.binding (
    login name NOT NULL, number integer NOT NULL, value text NOT NULL, PRIMARY KEY (login, number)
)"""
"""The values of row limits, by login. Nobody but Vault's own login, which owns it, may read or write it."""

FUNCTIONS: dict[str, str] = {
    "bind(name, integer, text)": """\
CREATE OR REPLACE FUNCTION orchestrator.bind(login name, number integer, value text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    IF login::text !~ '^orc_[a-z][a-z0-9-]{1,40}_[A-Za-z0-9]{8}$'
       OR NOT EXISTS (SELECT FROM pg_roles WHERE rolname = login) THEN
        RAISE EXCEPTION '% is not an ephemeral login of the orchestrator', login;
    END IF;
    INSERT INTO orchestrator.binding VALUES (login, number, value);
END
$body$""",
    BOUND: """\
CREATE OR REPLACE FUNCTION orchestrator.bound(wanted integer) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    SELECT value FROM orchestrator.binding WHERE login = session_user AND number = wanted
$body$""",
    OTHER_POLICIES: """\
CREATE OR REPLACE FUNCTION orchestrator.other_policies(relation oid) RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    RETURN EXISTS (
        SELECT FROM pg_policy WHERE polrelid = relation AND polpermissive AND polname <> 'orchestrator_everyone'
    );
END
$body$""",
    EVERYONE: """\
CREATE OR REPLACE FUNCTION orchestrator.everyone(relation oid) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    RETURN NOT orchestrator.other_policies(relation);
END
$body$""",
    **REVOCATION_FUNCTIONS,
}
"""By signature. They belong to Vault's own login, which made the ephemeral roles and so may drop them."""

REVOCATION = ["SELECT orchestrator.revoke('{{name}}')"]
RENEWAL = ["""ALTER ROLE "{{name}}" VALID UNTIL '{{expiration}}'"""]
ROLLBACK = ['DROP ROLE IF EXISTS "{{name}}"']


def creation(scope_role: str, max_connections: int) -> list[str]:
    """A login that inherits one scope role and can neither become it nor pass it on (PostgreSQL 16 and newer)."""
    scope = sql.Identifier(scope_role).as_string(None)
    return [
        "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' "
        f"CONNECTION LIMIT {max_connections}",
        f'GRANT {scope} TO "{{{{name}}}}" WITH ADMIN FALSE, INHERIT TRUE, SET FALSE',
    ]


def creation_of(grant: CompiledGrant) -> list[str]:
    """The same with the defaults of the grant's sessions, which are not limits: a session may set them itself.

    A login whose objects stay when it goes is marked so, for `orchestrator.revoke`.
    """
    statements = creation(grant.scope_role, grant.max_connections)
    if grant.statement_timeout is not None:
        statements.append(f"""ALTER ROLE "{{{{name}}}}" SET statement_timeout = '{grant.statement_timeout}s'""")
    if grant.read_only:
        statements.append("""ALTER ROLE "{{name}}" SET default_transaction_read_only = on""")
    if grant.owned_objects == "keep":
        statements.append(f"""COMMENT ON ROLE "{{{{name}}}}" IS '{KEEP_OBJECTS}'""")
    return statements
