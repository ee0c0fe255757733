"""A database in which PUBLIC may do nothing: no function, no schema; and statements held against it.

`assert_exact` carries a statement out under a role with exactly what was inferred, granted as provisioning grants it,
and once more for each single privilege taken away.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from orchestrator.grants.privileges import ALL_COLUMNS, Privilege
from orchestrator.inference.live import Inferred
from orchestrator.provision.database.acl import entries
from orchestrator.provision.database.targets import find_targets

ROLE = "step"


@dataclass(frozen=True)
class World:
    """The administrator's session, in which everything is tried and rolled back."""

    admin: psycopg.Connection[Any]

    def works(self, statement: str, held: Iterable[Privilege], parameters: Any = None) -> bool:
        """Whether a role that holds exactly these privileges may carry the statement out."""
        try:
            with self.admin.transaction(force_rollback=True):
                self._grant(list(held))
                self.admin.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(ROLE)))
                self._run(statement, parameters)
        except (psycopg.errors.InsufficientPrivilege, *_NOT_FOUND):
            return False
        return True

    def assert_exact(self, statement: str, inferred: Inferred, parameters: Any = None) -> None:
        """Sufficient, and nothing of it can be taken away."""
        assert inferred.complete, inferred.notes
        held = units(inferred.privileges)
        named = [each.describe() for each in held]
        assert self.works(statement, held, parameters), f"not sufficient: {named}"
        for number, unit in enumerate(held):
            rest = held[:number] + held[number + 1 :]
            assert not self.works(statement, rest, parameters), f"not minimal: {unit.describe()} of {named}"

    def _grant(self, held: list[Privilege]) -> None:
        targets = find_targets(self.admin, held)
        assert not targets.problems, targets.problems
        for entry in entries(held, targets.signatures):
            self.admin.execute(sql.SQL("GRANT {} TO {}").format(entry.clause(), sql.Identifier(ROLE)))

    def _run(self, statement: str, parameters: Any) -> None:
        with self.admin.cursor() as cursor:
            if statement.startswith("COPY") and " FROM " in statement:
                with cursor.copy(statement.encode()) as copy:
                    copy.write("7\t7\n")
            elif statement.startswith("COPY"):
                with cursor.copy(statement.encode()) as copy:
                    list(copy)
            else:
                cursor.execute(statement.encode(), parameters)


_NOT_FOUND = (
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedObject,
    psycopg.errors.UndefinedTable,
    psycopg.errors.InvalidSchemaName,
)
"""What is in a schema of the search path that may not be used is not found, rather than refused."""


def units(privileges: Iterable[Privilege]) -> list[Privilege]:
    """Each privilege of one column by itself."""
    return [
        Privilege(each.verb, each.schema, each.name, (column,)) if column else each
        for each in privileges
        for column in (each.columns if each.columns and each.columns != ALL_COLUMNS else ("",))
    ]


SCHEMA = """
CREATE EXTENSION IF NOT EXISTS plpgsql;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
CREATE SCHEMA app; CREATE SCHEMA util; CREATE SCHEMA ext; CREATE SCHEMA own;

-- what everybody may execute, in schemas that nobody may use
CREATE TYPE util.mood AS ENUM ('sad', 'ok');
CREATE TYPE util.pair AS (a int, b text);
CREATE DOMAIN util.short AS text CHECK (length(VALUE) < 9);
CREATE FUNCTION util.clean(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT btrim(t)';
CREATE FUNCTION util.near(a int, b int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT abs(a - b) < 2';
CREATE OPERATOR util.<-> (LEFTARG = int, RIGHTARG = int, FUNCTION = util.near);
CREATE AGGREGATE util.total (int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE COLLATION util.plain (provider = builtin, locale = 'C.UTF-8');
CREATE TEXT SEARCH CONFIGURATION util.words (COPY = pg_catalog.simple);
CREATE CAST (util.mood AS int) WITH FUNCTION pg_catalog.hashenum (anyenum);
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA util TO PUBLIC;

-- an extension in a schema of the search path, as people have it
CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION ltree SCHEMA ext; CREATE EXTENSION unaccent SCHEMA ext;
CREATE EXTENSION tablefunc SCHEMA ext; CREATE EXTENSION moddatetime SCHEMA ext; CREATE EXTENSION hstore SCHEMA ext;
CREATE EXTENSION cube SCHEMA ext; CREATE EXTENSION pg_trgm SCHEMA ext;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA ext TO PUBLIC;

CREATE SCHEMA own_types; CREATE EXTENSION seg SCHEMA own_types; -- of which not everybody may execute anything
CREATE CAST (int AS own_types.seg) WITH INOUT;

-- tables
CREATE TABLE app.t (id int PRIMARY KEY, a text, b int, c int, d jsonb, moods util.mood[]);
CREATE TABLE app.u (id int, t_id int, note text);
CREATE TABLE app.empty ();
CREATE TABLE app.tags (id int, path ext.ltree, name ext.citext);
CREATE TABLE app."Order" ("User" int, position int, "select" text);
CREATE TABLE app.job (id serial PRIMARY KEY, what text);
CREATE TABLE app.ident (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, what text);
CREATE SEQUENCE app.ticket;
INSERT INTO app.t SELECT n, 'a' || n, n, n FROM generate_series(1, 3) n;
INSERT INTO app.u SELECT n, n, 'note' FROM generate_series(1, 3) n;
INSERT INTO app.job (what) VALUES ('x');

-- functions that not everybody may execute; of their owner, so that no plan holds their bodies instead
CREATE FUNCTION app.ok(int) RETURNS bool IMMUTABLE LANGUAGE sql SECURITY DEFINER AS 'SELECT true';
CREATE FUNCTION app.one(int) RETURNS int IMMUTABLE LANGUAGE sql SECURITY DEFINER AS 'SELECT $1 % 100';
CREATE FUNCTION app.defaulted(x int, y int DEFAULT app.one(3)) RETURNS int LANGUAGE sql AS 'SELECT x + y';
CREATE FUNCTION app.plus(a int, b int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT a + b';
CREATE AGGREGATE app.added (int) (SFUNC = app.plus, STYPE = int, INITCOND = '0');
CREATE FUNCTION app.reading(s int, x int) RETURNS int LANGUAGE sql AS 'SELECT s + count(id)::int FROM app.u';
CREATE AGGREGATE app.reads (int) (SFUNC = app.reading, STYPE = int, INITCOND = '0');
CREATE FUNCTION app.first_of(anyarray) RETURNS anyelement LANGUAGE sql AS 'SELECT $1[1]';
CREATE FUNCTION app.counted(anyelement) RETURNS bigint LANGUAGE sql AS 'SELECT count(id) FROM app.u
    WHERE note <> $1::text';
CREATE FUNCTION app.title(r app.t) RETURNS text LANGUAGE sql AS 'SELECT r.a';
CREATE FUNCTION app.titled(r app.t) RETURNS text LANGUAGE sql AS 'SELECT r.a || note FROM app.u WHERE u.id = r.id';
CREATE FUNCTION app.backwards(OUT n bigint, which text) LANGUAGE sql AS 'SELECT count(id) FROM app.u
    WHERE note = which';
CREATE FUNCTION app.renamed(note text) RETURNS bigint LANGUAGE sql
    AS 'SELECT count(*) FROM app.u WHERE u.note = renamed.note';
CREATE FUNCTION app.store(n int, w text) RETURNS void LANGUAGE sql AS 'INSERT INTO app.u (id, note) VALUES (n, w)';
CREATE FUNCTION app.stored(n int, w text) RETURNS int LANGUAGE sql
    AS 'INSERT INTO app.u (id, note) VALUES (n, w), (n + 1, upper(w)) RETURNING id';
CREATE FUNCTION app.table_of(m int) RETURNS TABLE (id int, what text) LANGUAGE sql AS 'SELECT j.id, j.what
    FROM app.job j WHERE j.id < m';
CREATE FUNCTION app.trusted() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(a) FROM app.t';
CREATE FUNCTION app.spread(VARIADIC n int[]) RETURNS int LANGUAGE sql AS 'SELECT max(id) FROM app.u
    WHERE id = ANY(n)';
CREATE FUNCTION app.inner_one(n int) RETURNS text LANGUAGE sql AS 'SELECT note FROM app.u WHERE id = n';
CREATE FUNCTION app.outer_one() RETURNS text LANGUAGE sql AS 'SELECT app.inner_one(id) FROM app.job';
CREATE FUNCTION app.atomic(n int) RETURNS text LANGUAGE sql BEGIN ATOMIC SELECT note FROM app.u
    WHERE id = n AND util.clean('x') = 'x'; END;
CREATE FUNCTION app.returning(n int) RETURNS int LANGUAGE sql RETURN (SELECT max(id) FROM app.u WHERE u.id < n);
CREATE PROCEDURE app.tidy() LANGUAGE sql AS 'DELETE FROM app.u WHERE id = 99';
CREATE PROCEDURE app.close_day(day date, keep int DEFAULT app.one(1)) LANGUAGE sql
    AS 'UPDATE app.u SET note = day::text WHERE id = keep';
CREATE PROCEDURE app.added_up(n int, OUT r int) LANGUAGE sql AS 'SELECT max(t_id) + n FROM app.u';
CREATE TABLE own.basket (id int, secret text); CREATE TABLE public.basket (id int, secret text);
CREATE FUNCTION app.pathed() RETURNS bigint LANGUAGE sql SET search_path = own, pg_temp AS 'SELECT count(id)
    FROM basket';
CREATE FUNCTION app.overloaded(text) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION app.overloaded(int) RETURNS bigint LANGUAGE sql AS 'SELECT count(id) FROM app.u';

CREATE FUNCTION app.overloaded_behind(OUT n bigint, which int) LANGUAGE sql AS 'SELECT app.overloaded(which)';

-- what runs along
CREATE TABLE app.checked (a int, b int, CHECK (app.ok(a)));
CREATE TABLE app.generated (a int, b int, g int GENERATED ALWAYS AS (app.one(a)) STORED);
CREATE TABLE app.indexed (a int, b int); CREATE INDEX ON app.indexed (app.one(a));
CREATE TABLE app.partial (a int, b int); CREATE INDEX ON app.partial (b) WHERE app.ok(a);
CREATE TABLE app.parted (a int, b int) PARTITION BY RANGE (app.one(a));
CREATE TABLE app.parted_1 PARTITION OF app.parted FOR VALUES FROM (0) TO (100);
CREATE DOMAIN app.positive AS int CHECK (app.ok(VALUE));
CREATE DOMAIN app.narrow AS app.positive CHECK (app.one(VALUE) < 100);
CREATE TYPE app.holder AS (x app.positive, y text);
CREATE TABLE app.domains (p app.positive, n app.narrow, h app.holder, l app.positive[]);
CREATE TABLE app.month (day date, a int, b int) PARTITION BY RANGE (day);
CREATE TABLE app.month_1 PARTITION OF app.month FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
CREATE TABLE app.month_2 PARTITION OF app.month FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
CREATE TABLE app.constrained (a int, b int) PARTITION BY LIST (a);
CREATE TABLE app.constrained_1 PARTITION OF app.constrained (CHECK (app.ok(b))) FOR VALUES IN (1, 7);
CREATE FUNCTION app.loud() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM 1 FROM app.t; RETURN NEW; END';
CREATE TABLE app.parent (a int, b int); CREATE TABLE app.child (CHECK (app.ok(a))) INHERITS (app.parent);
CREATE TRIGGER each_statement AFTER UPDATE ON app.child EXECUTE FUNCTION app.loud(); -- not where the parent is named
INSERT INTO app.child VALUES (1, 1);
INSERT INTO app.checked VALUES (1, 1); INSERT INTO app.generated VALUES (1, 1); INSERT INTO app.indexed VALUES (1, 1);
INSERT INTO app.parted VALUES (1, 1); INSERT INTO app.month VALUES ('2024-01-05', 1, 1);
CREATE VIEW app.over_checked AS SELECT a, b FROM app.checked;
CREATE VIEW app.invoking WITH (security_invoker) AS SELECT a, b FROM app.checked;
CREATE VIEW app.over_view AS SELECT a FROM app.over_checked;
CREATE VIEW app.computed AS SELECT id, app.one(b) AS one FROM app.t;
CREATE VIEW app.using_util AS SELECT id, util.clean(a) AS a FROM app.t;
CREATE TABLE app.ruled (a int); CREATE TABLE app.written (a int, CHECK (app.ok(a)));
CREATE RULE also AS ON INSERT TO app.ruled DO ALSO INSERT INTO app.written VALUES (NEW.a);
CREATE FUNCTION app.quiet() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN RETURN NEW; END';
CREATE TABLE app.conditional (a int, b int, at timestamptz, v tsvector);
CREATE TRIGGER w BEFORE INSERT OR UPDATE OF b ON app.conditional FOR EACH ROW WHEN (app.ok(NEW.a))
    EXECUTE FUNCTION app.quiet();
CREATE TABLE app.stamped (a int, at timestamptz, body text, v tsvector);
CREATE TRIGGER m BEFORE UPDATE ON app.stamped FOR EACH ROW EXECUTE FUNCTION ext.moddatetime(at);
CREATE TRIGGER v BEFORE INSERT OR UPDATE ON app.stamped FOR EACH ROW
    EXECUTE FUNCTION tsvector_update_trigger(v, 'pg_catalog.simple', body);
CREATE TABLE app.watched (a int, b int, c int);
CREATE TRIGGER b AFTER UPDATE OF b ON app.watched FOR EACH ROW EXECUTE FUNCTION app.loud();
CREATE TABLE app.touched (a text, updated_at timestamptz, m util.mood); INSERT INTO app.touched VALUES ('a');
CREATE FUNCTION app.touch() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE before timestamptz := now();
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.a IS DISTINCT FROM OLD.a THEN
        NEW.updated_at := greatest(before, clock_timestamp());
        NEW.a = lower(NEW.a) || 'x'::text;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER t BEFORE UPDATE ON app.touched FOR EACH ROW EXECUTE FUNCTION app.touch();
CREATE TABLE app.compared (a int, b int); INSERT INTO app.compared VALUES (1, 1);
CREATE FUNCTION app.compare() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW IS NOT DISTINCT FROM OLD THEN RAISE EXCEPTION 'nothing is changed by %', pg_trigger_depth(); END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER c BEFORE UPDATE ON app.compared FOR EACH ROW EXECUTE FUNCTION app.compare();
CREATE FUNCTION app.half(n int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE r int;
BEGIN
    FOR i IN 1..2 LOOP r := coalesce(r, 0) + n / 4; END LOOP;
    RETURN r;
END $$;
CREATE TABLE app.replicated (a int);
CREATE TRIGGER r AFTER INSERT ON app.replicated FOR EACH ROW EXECUTE FUNCTION app.loud();
ALTER TABLE app.replicated ENABLE REPLICA TRIGGER r;
INSERT INTO app.watched VALUES (1, 1, 1);

-- row security
CREATE TABLE app.member (org int, who text); INSERT INTO app.member VALUES (1, 'x');
CREATE TABLE app.doc (id int, org int, body text); INSERT INTO app.doc VALUES (1, 1, 'x');
ALTER TABLE app.doc ENABLE ROW LEVEL SECURITY;
CREATE POLICY members ON app.doc USING (org IN (SELECT org FROM app.member) AND app.ok(org));
CREATE TABLE app.only_app (id int); ALTER TABLE app.only_app ENABLE ROW LEVEL SECURITY;
CREATE ROLE app_user; CREATE POLICY app_only ON app.only_app TO app_user USING (true);
"""
