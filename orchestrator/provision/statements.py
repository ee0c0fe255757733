"""The SQL that provisioning installs: objects of the schema `orchestrator`, and the statements of Vault's roles."""

from __future__ import annotations

from psycopg import sql

from orchestrator.grants.compiled import CompiledGrant
from orchestrator.grants.policy_names import BrokerDuty

PREFIX = "orc_"
"""Begins the name of every ephemeral login: `orc_<step key>_<8 characters>`."""

USERNAME_TEMPLATE = '{{ printf "orc_%s_%s" (.DisplayName | replace "token-" "") (random 8) | truncate 63 }}'

DUTY_ROLES: dict[BrokerDuty, str] = {"sweep": "orchestrator_sweeper", "bind": "orchestrator_binder"}
"""The NOLOGIN role of each duty of the broker."""

DUTY_FUNCTIONS: dict[BrokerDuty, tuple[str, ...]] = {
    "sweep": ("ephemeral_roles(text)", "sweep(text)"),
    "bind": ("bind(name, integer, text)",),
}
"""What the role of each duty may call."""

BOUND = "bound(integer)"
"""What a scope role with row limits may call: it tells a session its own values and nothing else."""

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
    "revoke(name)": """\
CREATE OR REPLACE FUNCTION orchestrator.revoke(login name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    login_oid oid;
BEGIN
    IF login::text !~ '^orc_[a-z][a-z0-9-]{1,40}_[A-Za-z0-9]{8}$' THEN
        RAISE EXCEPTION '% is not an ephemeral login of the orchestrator', login;
    END IF;
    DELETE FROM orchestrator.binding WHERE binding.login = revoke.login;
    SELECT oid INTO login_oid FROM pg_roles WHERE rolname = login;
    IF login_oid IS NULL THEN
        RETURN;
    END IF;
    PERFORM pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usesysid = login_oid;
    IF EXISTS (SELECT FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND refobjid = login_oid
               AND deptype IN ('o', 'a')) THEN
        EXECUTE format('GRANT %I TO CURRENT_USER WITH INHERIT TRUE, SET TRUE', login);
        EXECUTE format('DROP OWNED BY %I', login);
    END IF;
    EXECUTE format('DROP ROLE %I', login);
    PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE usesysid = login_oid;
END
$body$""",
    "ephemeral_roles(text)": """\
CREATE OR REPLACE FUNCTION orchestrator.ephemeral_roles(step_key text) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    IF step_key IS NULL OR step_key !~ '^[a-z][a-z0-9-]{5,40}$' THEN
        RAISE EXCEPTION 'this is not a step key';
    END IF;
    RETURN QUERY SELECT rolname::text FROM pg_roles
        WHERE rolname ~ '^orc_' AND length(rolname) = length(step_key) + 13
        AND starts_with(rolname::text, 'orc_' || step_key || '_') AND right(rolname, 8) ~ '^[A-Za-z0-9]{8}$'
        ORDER BY 1;
END
$body$""",
    "sweep(text)": """\
CREATE OR REPLACE FUNCTION orchestrator.sweep(step_key text) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    login text;
BEGIN
    FOR login IN SELECT * FROM orchestrator.ephemeral_roles(step_key) LOOP
        PERFORM orchestrator.revoke(login::name);
        RETURN NEXT login;
    END LOOP;
END
$body$""",
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
    """The same with the defaults of the grant's sessions, which are not limits: a session may set them itself."""
    statements = creation(grant.scope_role, grant.max_connections)
    if grant.statement_timeout is not None:
        statements.append(f"""ALTER ROLE "{{{{name}}}}" SET statement_timeout = '{grant.statement_timeout}s'""")
    if grant.read_only:
        statements.append("""ALTER ROLE "{{name}}" SET default_transaction_read_only = on""")
    return statements
