"""The SQL functions that take ephemeral logins back. They belong to Vault's own login, which made the logins.

A login is dropped (`remove`) or, where that cannot be, made useless (`disable`: NOLOGIN, no memberships, sessions
ended), in one transaction. `revoke_or_disable` tells why a login is still there; `revoke`, which Vault calls, raises
only if the login could still be used. So Vault's word alone means that nobody can log in any more; whether the role is
gone, too, the orchestrator asks the catalog.

What a transaction has seen of the sessions stays as it was until it is told to forget that (PostgreSQL manual, 27.2.2):
before the last look at them it is, since one that began meanwhile would outlive its role.

Whether owned objects go or stay is written on the role as a comment when it is created, so that every way of taking a
login back obeys it; only the owner of a role may change its comment, which an ephemeral login is not (PostgreSQL
manual, COMMENT). Objects that stay are given to Vault's login: a scope role would hand them to every later step of its
kind.
"""

from __future__ import annotations

LOGIN = "^orc_[a-z][a-z0-9-]{1,40}_[A-Za-z0-9]{8}$"
"""The names of ephemeral logins, `orc_<step key>_<8 characters>`, and of nothing else."""

KEEP_OBJECTS = "orchestrator: keep owned objects"
"""The comment on a login whose objects stay when it goes."""

EXPIRED_FOR = "30 seconds"
"""How long a login has been invalid by the database's clock before it is swept: Vault's own turn comes first."""

SWEEP_TIME = "15 seconds"
"""How long one sweep of expired logins begins with further ones: what is done by then is kept, the rest comes later."""

REVOCATION_FUNCTIONS: dict[str, str] = {
    "disable(name)": f"""\
CREATE OR REPLACE FUNCTION orchestrator.disable(login name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    held name;
BEGIN
    IF login::text !~ '{LOGIN}' THEN
        RAISE EXCEPTION '% is not an ephemeral login of the orchestrator', login;
    END IF;
    DELETE FROM orchestrator.binding WHERE binding.login = disable.login;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = login) THEN
        RETURN;
    END IF;
    EXECUTE format('ALTER ROLE %I NOLOGIN', login);
    FOR held IN SELECT granted.rolname FROM pg_auth_members m JOIN pg_roles granted ON granted.oid = m.roleid
                JOIN pg_roles member ON member.oid = m.member WHERE member.rolname = login LOOP
        EXECUTE format('REVOKE %I FROM %I', held, login);
    END LOOP;
    PERFORM pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = login;
END
$body$""",  # noqa: S608 -- constants of this module
    "remove(name)": f"""\
CREATE OR REPLACE FUNCTION orchestrator.remove(login name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    login_oid oid;
    elsewhere text;
BEGIN
    IF login::text !~ '{LOGIN}' THEN
        RAISE EXCEPTION '% is not an ephemeral login of the orchestrator', login;
    END IF;
    DELETE FROM orchestrator.binding WHERE binding.login = remove.login;
    SELECT oid INTO login_oid FROM pg_roles WHERE rolname = login;
    IF login_oid IS NULL THEN
        RETURN;
    END IF;
    PERFORM set_config('lock_timeout', '5s', true);
    PERFORM pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usesysid = login_oid;
    SELECT string_agg(format('%L in %I', gid, database), ', ' ORDER BY gid) INTO elsewhere
        FROM pg_prepared_xacts WHERE owner = login;
    IF elsewhere IS NOT NULL THEN
        RAISE EXCEPTION '% has left prepared transactions, which keep their locks (%): ROLLBACK PREPARED them '
            'there, as an administrator', login, elsewhere
            USING ERRCODE = 'dependent_objects_still_exist';
    END IF;
    IF EXISTS (SELECT FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND refobjid = login_oid) THEN
        SELECT string_agg(DISTINCT datname::text, ', ') INTO elsewhere
            FROM pg_shdepend JOIN pg_database ON pg_database.oid = pg_shdepend.dbid
            WHERE refclassid = 'pg_authid'::regclass AND refobjid = login_oid AND datname <> current_database();
        IF elsewhere IS NOT NULL THEN
            RAISE EXCEPTION '% owns objects or holds privileges in another database (%): REASSIGN OWNED BY or '
                'DROP OWNED BY it there, as an administrator', login, elsewhere
                USING ERRCODE = 'dependent_objects_still_exist';
        END IF;
        EXECUTE format('GRANT %I TO CURRENT_USER WITH INHERIT TRUE, SET TRUE', login);
        IF shobj_description(login_oid, 'pg_authid') = '{KEEP_OBJECTS}' THEN
            EXECUTE format('REASSIGN OWNED BY %I TO CURRENT_USER', login);
        END IF;
        EXECUTE format('DROP OWNED BY %I', login);
    END IF;
    EXECUTE format('DROP ROLE %I', login);
    PERFORM pg_stat_clear_snapshot();
    PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE usesysid = login_oid;
END
$body$""",  # noqa: S608 -- constants of this module
    "revoke_or_disable(name)": """\
CREATE OR REPLACE FUNCTION orchestrator.revoke_or_disable(login name) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    problem text;
    detail text;
BEGIN
    BEGIN
        PERFORM orchestrator.remove(login);
        RETURN NULL;
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS problem = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
        problem := concat_ws(': ', problem, nullif(replace(detail, E'\\n', ', '), ''));
    END;
    BEGIN
        PERFORM orchestrator.disable(login);
    EXCEPTION WHEN OTHERS THEN
        problem := problem || '; it could not be disabled either: ' || SQLERRM;
    END;
    RETURN CASE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = login) THEN problem END;
END
$body$""",
    "revoke(name)": """\
CREATE OR REPLACE FUNCTION orchestrator.revoke(login name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    problem text := orchestrator.revoke_or_disable(login);
BEGIN
    IF problem IS NOT NULL AND EXISTS (
        SELECT FROM pg_roles r WHERE r.rolname = login
        AND (r.rolcanlogin OR EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid))
    ) THEN
        RAISE EXCEPTION '%', problem;
    END IF;
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
CREATE OR REPLACE FUNCTION orchestrator.sweep(step_key text) RETURNS TABLE (login text, problem text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    FOR login IN SELECT * FROM orchestrator.ephemeral_roles(step_key) LOOP
        problem := orchestrator.revoke_or_disable(login::name);
        RETURN NEXT;
    END LOOP;
END
$body$""",
    "sweep_expired()": f"""\
CREATE OR REPLACE FUNCTION orchestrator.sweep_expired() RETURNS TABLE (login text, problem text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    FOR login IN
        SELECT rolname FROM pg_roles
        WHERE rolname ~ '{LOGIN}' AND pg_has_role(oid, 'MEMBER WITH ADMIN OPTION')
        AND rolvaliduntil < clock_timestamp() - interval '{EXPIRED_FOR}'
        ORDER BY rolcanlogin DESC, rolvaliduntil, rolname
    LOOP
        EXIT WHEN clock_timestamp() > statement_timestamp() + interval '{SWEEP_TIME}';
        problem := orchestrator.revoke_or_disable(login::name);
        RETURN NEXT;
    END LOOP;
END
$body$""",  # noqa: S608 -- constants of this module
}
"""By signature. Only the sweeper may call the two sweeps and the list; the rest is for Vault's login alone."""
