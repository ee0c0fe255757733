"""What is inferred, where PUBLIC may do nothing: sufficient, and nothing of it can be taken away. By kinds of need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from inference_world import ROLE, SCHEMA, World, units
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb
from waiting import wait_for

from orchestrator.devstack.postgres import Postgres
from orchestrator.errors import UsageError
from orchestrator.inference.live import Inference
from orchestrator.inference.parameters import Later
from orchestrator.inference.workflows import open_catalogs
from orchestrator.secret import Secret

NAMES = {
    "function of a schema": "SELECT util.clean(a) FROM app.t",
    "function in WHERE": "SELECT id FROM app.t WHERE util.near(b, c)",
    "type in a cast": "SELECT 'ok'::util.mood",
    "type in CAST": "SELECT CAST(a AS util.short) FROM app.t",
    "array of a type": "SELECT '{ok}'::util.mood[]",
    "type of a row": "SELECT (ROW(1, 'x')::util.pair).a",
    "type of a table": "SELECT NULL::app.t",
    "row type cast": "SELECT ROW(1, 2, 'x')::app.u",
    "operator": "SELECT id FROM app.t WHERE b OPERATOR(util.<->) c",
    "operator on each of a list": "SELECT id FROM app.t WHERE b OPERATOR(util.<->) ANY (ARRAY[c])",
    "operator of all of a list": "SELECT id FROM app.t WHERE b OPERATOR(util.<->) ALL (ARRAY[c])",
    "aggregate": "SELECT util.total(b) FROM app.t",
    "aggregate as a window": "SELECT util.total(b) OVER () FROM app.t",
    "collation": "SELECT a FROM app.t ORDER BY a COLLATE util.plain",
    "text search configuration": "SELECT to_tsvector('util.words', a) FROM app.t",
    "regclass": "SELECT 'app.t'::regclass",
    "regclass of a sequence": "SELECT 'app.ticket'::regclass::text",
    "regtype": "SELECT 'util.mood'::regtype",
    "regprocedure": "SELECT 'util.clean(text)'::regprocedure",
    "regproc": "SELECT 'util.clean'::regproc",
    "regoperator": "SELECT 'util.<->(int,int)'::regoperator",
    "regconfig": "SELECT 'util.words'::regconfig",
    "regcollation": "SELECT 'util.plain'::regcollation",
    "to_regclass": "SELECT to_regclass('app.t')",
    "to_regtype": "SELECT to_regtype('util.mood')",
    "to_regprocedure": "SELECT to_regprocedure('util.clean(text)')",
    "regclass of a text": "SELECT ('app.t'::text)::regclass",
    "table function": "SELECT * FROM unnest(ARRAY['ok']::util.mood[]) m",
    "typed columns of a function": "SELECT * FROM json_to_recordset('[]') AS x (m util.mood)",
    "type in a json table": "SELECT x FROM JSON_TABLE('[\"ok\"]', '$[*]' COLUMNS (x util.mood PATH '$')) j",
    "unaccent on the search path": "SELECT unaccent(a) FROM app.t",
    "unaccent with its schema": "SELECT ext.unaccent(a) FROM app.t",
    "ltree operator on the search path": "SELECT id FROM app.tags WHERE path <@ path",
    "ltree operator in JOIN": "SELECT x.id FROM app.tags x JOIN app.tags y USING (path)",
    "ltree in a list": "SELECT id FROM app.tags WHERE path IN (path, path)",
    "ltree in CASE": "SELECT CASE path WHEN path THEN 1 END FROM app.tags",
    "ltree NULLIF": "SELECT nullif(path, path) FROM app.tags",
    "ltree compared as a row": "SELECT id FROM app.tags WHERE (path, path) < (path, path)",
    "unqualified type": "SELECT 'x'::citext",
    "unqualified type of an array": "SELECT '{x}'::citext[]",
    "hstore": "SELECT 'a=>1'::hstore -> 'a'",
    "cube": "SELECT cube(b::float8) FROM app.t",
    "trigrams": "SELECT similarity(a, 'x'), a % 'x' FROM app.t",
    "ordering needs no name": "SELECT id FROM app.tags ORDER BY name",
    "grouping needs no name": "SELECT count(id) FROM app.tags GROUP BY path",
    "implicit cast needs no name": "INSERT INTO app.tags (id, path, name) VALUES (1, 'a.b', 'x')",
    "behind a view no name is looked up": "SELECT id, a FROM app.using_util",
    "reserved words": 'SELECT "User", position, "select" FROM app."Order"',
}

FUNCTIONS = {
    "function": "SELECT app.one(b) FROM app.t",
    "default of an argument": "SELECT app.defaulted(1)",
    "no default is used": "SELECT app.defaulted(1, 2)",
    "default by name": "SELECT app.defaulted(x => 1)",
    "named arguments": "SELECT app.defaulted(y => 1, x => 2)",
    "aggregate": "SELECT app.added(b) FROM app.t",
    "aggregate whose transition reads": "SELECT app.reads(b) FROM app.t",
    "polymorphic array": "SELECT app.first_of(ARRAY[1, 2])",
    "polymorphic array of a column": "SELECT app.first_of(ARRAY[a, 'x']) FROM app.t",
    "polymorphic element": "SELECT app.counted(5)",
    "polymorphic element of two types": "SELECT app.counted('x'::text), app.counted(5)",
    "row argument": "SELECT app.title(t) FROM app.t",
    "field of an argument against columns": "SELECT app.titled(t) FROM app.t",
    "OUT before IN": "SELECT app.backwards('x')",
    "OUT before IN whose type matters": "SELECT app.overloaded_behind(5)",
    "argument by the function's name": "SELECT app.renamed('x')",
    "insert of arguments": "SELECT app.store(7, 'x')",
    "rows of arguments": "SELECT app.stored(7, 'x')",
    "returns a table": "SELECT what FROM app.table_of(3)",
    "variadic": "SELECT app.spread(1, 2, 3)",
    "as its owner": "SELECT app.trusted()",
    "calls another": "SELECT app.outer_one()",
    "atomic": "SELECT app.atomic(1)",
    "RETURN": "SELECT app.returning(3)",
    "search path of its own": "SELECT app.pathed()",
    "overload by a literal": "SELECT app.overloaded('x')",
    "overload by a number": "SELECT app.overloaded(5)",
    "cast of a constant by way of a text": "SELECT 5::own_types.seg",
    "cast of a column by way of a text": "SELECT b::own_types.seg FROM app.t",
    "in a view": "SELECT one FROM app.computed",
    "procedure": "CALL app.tidy()",
    "procedure with a name": "CALL app.close_day(day => '2024-01-01', keep => 2)",
    "procedure with a default": "CALL app.close_day('2024-01-01')",
    "procedure with OUT": "CALL app.added_up(1, NULL)",
    "in a subquery that is read": "SELECT x FROM (SELECT app.one(b) AS x FROM app.t) q",
    "lateral": "SELECT j.what FROM app.t, LATERAL app.table_of(t.id) j",
    "restricted built-in": "SELECT pg_stat_reset_shared('io')",
    "restricted built-in in FROM": "SELECT count(*) FROM pg_ls_waldir()",
    "in HAVING": "SELECT b FROM app.t GROUP BY b HAVING app.ok(b)",
    "in FILTER": "SELECT count(id) FILTER (WHERE app.ok(b)) FROM app.t",
    "in ORDER BY": "SELECT id FROM app.t ORDER BY app.one(b)",
    "in a window": "SELECT row_number() OVER (PARTITION BY app.one(b)) FROM app.t",
    "in ON": "SELECT t.id FROM app.t JOIN app.u ON app.one(t.id) = u.id",
    "in LIMIT": "SELECT id FROM app.t LIMIT app.one(2)",
    "in RETURNING": "INSERT INTO app.u (id) VALUES (8) RETURNING app.one(id)",
    "in SET": "UPDATE app.u SET id = app.one(id)",
    "in ON CONFLICT": "INSERT INTO app.t (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET b = app.one(excluded.id)",
    "in MERGE": "MERGE INTO app.t USING app.u ON t.id = u.t_id WHEN MATCHED AND app.ok(u.id) THEN UPDATE SET b = 1",
    "in VALUES": "VALUES (app.one(1)), (app.one(2))",
    "in GROUPING SETS": "SELECT count(id) FROM app.t GROUP BY GROUPING SETS ((app.one(b)), ())",
}

WRITES = {
    "check": "INSERT INTO app.checked VALUES (7, 7)",
    "check on update of another column": "UPDATE app.checked SET b = 2",
    "check on delete is not needed": "DELETE FROM app.checked",
    "generated": "INSERT INTO app.generated (a) VALUES (7)",
    "generated from what is updated": "UPDATE app.generated SET a = 2",
    "generated from another column": "UPDATE app.generated SET b = 2",
    "generated on delete is not needed": "DELETE FROM app.generated",
    "expression of an index": "INSERT INTO app.indexed VALUES (7, 7)",
    "expression of an index on update": "UPDATE app.indexed SET a = 7",
    "predicate of an index": "INSERT INTO app.partial VALUES (7, 7)",
    "partition key": "INSERT INTO app.parted VALUES (7, 7)",
    "partition key of a partition": "INSERT INTO app.parted_1 VALUES (7, 7)",
    "partition key on update": "UPDATE app.parted SET b = 7",
    "partition is only read": "SELECT a FROM app.parted WHERE b = 1",
    "partitions without anything": "INSERT INTO app.month VALUES ('2024-01-09', 1, 1)",
    "row moves": "UPDATE app.month SET day = '2024-02-05'",
    "check of a partition": "INSERT INTO app.constrained VALUES (7, 7)",
    "check of a partition on delete is not needed": "DELETE FROM app.constrained",
    "check of a child on update": "UPDATE app.parent SET b = 7",
    "only the parent": "UPDATE ONLY app.parent SET b = 7",
    "insert into a parent stays there": "INSERT INTO app.parent VALUES (7, 7)",
    "check behind a view": "INSERT INTO app.over_checked VALUES (7, 7)",
    "check behind an invoking view": "INSERT INTO app.invoking VALUES (7, 7)",
    "check behind a view over a view": "INSERT INTO app.over_view VALUES (7)",
    "update behind a view": "UPDATE app.over_checked SET b = 7",
    "table that a rule writes": "INSERT INTO app.ruled VALUES (7)",
    "condition of a trigger": "INSERT INTO app.conditional (a) VALUES (7)",
    "condition of a trigger of another column": "UPDATE app.conditional SET a = 7",
    "trigger functions that only compute": "INSERT INTO app.stamped (a, body) VALUES (7, 'x')",
    "trigger functions that only compute on update": "UPDATE app.stamped SET body = 'x'",
    "trigger of another column": "UPDATE app.watched SET c = 7",
    "trigger that only sets the time": "UPDATE app.touched SET a = 'x'",
    "trigger that compares the rows": "UPDATE app.compared SET a = 7",
    "function in PL/pgSQL that only computes": "SELECT app.half(b) FROM app.t",
    "trigger of another event": "INSERT INTO app.watched VALUES (7, 7, 7)",
    "trigger of replicas": "INSERT INTO app.replicated VALUES (7)",
    "domain in a cast": "SELECT 7::app.positive",
    "domain over a domain": "SELECT 7::app.narrow",
    "domain in an array of an expression": "SELECT ARRAY[b]::app.positive[] FROM app.t",
    "domain in a row by json": "SELECT jsonb_populate_record(NULL::app.holder, '{\"x\": 7}')",
    "domain of a column": "INSERT INTO app.domains (p) VALUES (7)",
    "domains that are read": "SELECT p, n FROM app.domains",
    "default with a sequence": "INSERT INTO app.job (what) VALUES ('y')",
    "identity needs no sequence": "INSERT INTO app.ident (what) VALUES ('y')",
    "value instead of the default": "INSERT INTO app.job (id, what) VALUES (77, 'y')",
    "copy with a check": "COPY app.checked FROM STDIN",
    "copy some columns": "COPY app.checked (b, a) FROM STDIN",
    "copy what is kept": "COPY app.parent (a, b) FROM STDIN WHERE a > 3",
    "copy what a function keeps": "COPY app.parent (a, b) FROM STDIN WHERE app.ok(b)",
    "copy into a partition": "COPY app.parted FROM STDIN",
}

SEQUENCES = {
    "constant": "SELECT nextval('app.ticket')",
    "cast text": "SELECT nextval('app.ticket'::text::regclass)",
    "of a serial column": "SELECT nextval(pg_get_serial_sequence('app.job', 'id'))",
    "of a serial column in an insert": "INSERT INTO app.u (id) VALUES"
    " (nextval(pg_get_serial_sequence('app.job', 'id')))",
    "current": "SELECT nextval('app.ticket'), currval('app.ticket')",
    "current of a serial": "SELECT nextval('app.job_id_seq'), currval(pg_get_serial_sequence('app.job', 'id'))",
    "parameters": "SELECT * FROM pg_sequence_parameters('app.ticket'::regclass)",
    "last value": "SELECT pg_sequence_last_value('app.ticket')",
    "its name only": "SELECT pg_get_serial_sequence('app.job', 'id')",
}

COLUMNS = {
    "xmax of an upsert": "INSERT INTO app.t (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET b = 2 RETURNING (xmax = 0)",
    "xmin": "SELECT id, xmin FROM app.t",
    "ctid": "DELETE FROM app.u WHERE ctid IN (SELECT ctid FROM app.u LIMIT 1)",
    "tableoid": "SELECT tableoid, a FROM app.parent",
    "cmin": "UPDATE app.u SET id = 1 WHERE cmin IS NOT NULL",
    "system columns of two": "SELECT t.xmin, u.xmax FROM app.t JOIN app.u ON u.t_id = t.id",
    "no columns at all": "SELECT FROM app.empty",
    "count of no columns": "SELECT count(*) FROM app.empty",
    "star of no columns": "SELECT * FROM app.empty",
    "whole row": "SELECT u FROM app.u",
    "star": "SELECT * FROM app.u",
    "restricted columns of the catalog": "SELECT oid, subname FROM pg_subscription",
    "a restricted column of the catalog": "SELECT subconninfo FROM pg_subscription",
    "columns of the catalog": "SELECT relname FROM pg_class",
}

WITHS = {
    "unused": "WITH w AS (SELECT a FROM app.t) SELECT 1",
    "unused with the name of a table": "WITH u AS (SELECT a FROM app.t) SELECT id FROM app.u",
    "used by an unused one": "WITH w AS (SELECT a FROM app.t), x AS (SELECT 1 FROM w) SELECT 1",
    "used by a used one": "WITH w AS (SELECT a FROM app.t), x AS (SELECT a FROM w) SELECT a FROM x",
    "used by a used one beside an unused one": "WITH w AS (SELECT a FROM app.t), x AS (SELECT a FROM w),"
    " y AS (SELECT 1) SELECT a FROM x",
    "in two scopes": "WITH w AS (SELECT a FROM app.t) SELECT id FROM (WITH w AS (SELECT id FROM app.u)"
    " SELECT id FROM w) q",
    "recursive with a name in it": "WITH RECURSIVE t AS (SELECT id FROM app.u"
    " UNION ALL SELECT t.id + 9 FROM t WHERE t.id < 9)"
    " SELECT 1",
    "recursive and used": "WITH RECURSIVE n AS (SELECT id FROM app.u UNION ALL SELECT n.id + 9 FROM n WHERE n.id < 9)"
    " SELECT id FROM n",
    "unused that writes": "WITH w AS (INSERT INTO app.u (id) VALUES (9)) SELECT 1",
    "unused with a function": "WITH w AS (SELECT app.one(1)) SELECT 1",
    "used by one that writes": "WITH w AS (SELECT id FROM app.t), x AS (INSERT INTO app.u (id) SELECT id"
    " FROM w) SELECT 1",
    "within a subquery": "SELECT id FROM app.u WHERE id IN (WITH w AS (SELECT b FROM app.t), x AS (SELECT 1)"
    " SELECT b FROM w)",
    "unused around a used one of its name": "WITH w AS (SELECT a FROM app.t) SELECT x FROM app.u, LATERAL"
    " (WITH w AS (SELECT u.id AS x) SELECT x FROM w) q",
}

POLICIES = {
    "what a policy reads": "SELECT body FROM app.doc",
    "what a policy reads on insert": "INSERT INTO app.doc (id, org) VALUES (7, 1)",
    "what a policy reads on delete": "DELETE FROM app.doc",
    "what a policy reads on update": "UPDATE app.doc SET body = 'x'",
}

FORMS = {
    "two locking clauses": "SELECT t.id FROM app.t, app.u FOR UPDATE OF t FOR SHARE OF u",
    "long chain": "SELECT a " + "|| 'x' " * 150 + "FROM app.t",
    "long union": " UNION ALL ".join(["SELECT id FROM app.u"] * 40),
    "explain": "EXPLAIN SELECT a FROM app.t",
    "explain with a call": "EXPLAIN (COSTS off) SELECT app.one(b) FROM app.t",
    "unicode": "SELECT a AS \"größe\", 'ä' || a FROM app.t WHERE a <> 'ü'",
    "comments": "/* ä */ SELECT -- x\n a FROM app.t",
    "table": "TABLE app.u",
    "empty array": "SELECT a FROM app.t WHERE b = ANY (ARRAY[]::int[])",
    "old and new": "UPDATE app.t SET b = 2 RETURNING old.b, new.b",
    "merge by source": "MERGE INTO app.t USING app.u ON t.id = u.t_id WHEN NOT MATCHED BY SOURCE THEN DELETE",
    "skip locked": "SELECT id FROM app.t FOR UPDATE SKIP LOCKED",
    "prepared in the same text": "PREPARE p AS SELECT a FROM app.t; EXECUTE p; DEALLOCATE p",
}

WITHOUT_THE_SCHEMA = {
    "compared": "SELECT id FROM app.tags WHERE name = 'x'",
    "in a list": "SELECT id FROM app.tags WHERE name IN ('x', 'y')",
    "joined": "SELECT x.id FROM app.tags x JOIN app.tags y USING (name)",
    "in CASE": "SELECT CASE name WHEN 'x' THEN 1 END FROM app.tags",
    "BETWEEN": "SELECT id FROM app.tags WHERE name BETWEEN 'a' AND 'b'",
    "NULLIF": "SELECT nullif(name, 'x') FROM app.tags",
    "LIKE": "SELECT id FROM app.tags WHERE name LIKE 'x%'",
    "distinct from": "SELECT id FROM app.tags WHERE name IS DISTINCT FROM 'x'",
    "any": "SELECT id FROM app.tags WHERE name = ANY ('{x}')",
}
"""Without the schema `ext` the server takes the operators of `text` instead: it works, and means something else."""

ALL = {
    f"{kind}: {name}": statement
    for kind, statements in {
        "names": NAMES,
        "functions": FUNCTIONS,
        "writes": WRITES,
        "sequences": SEQUENCES,
        "columns": COLUMNS,
        "with": WITHS,
        "policies": POLICIES,
        "forms": FORMS,
    }.items()
    for name, statement in statements.items()
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("closed") / "server") as server:
        with psycopg.connect(server.dsn().reveal(), autocommit=True) as admin:
            admin.execute(SCHEMA.encode())
            admin.execute(NOISE.encode())
            admin.execute(f"CREATE ROLE reader LOGIN PASSWORD 'reader'; CREATE ROLE {ROLE} NOLOGIN".encode())
            admin.execute("GRANT USAGE ON SCHEMA app, util, ext, own, own_types, public TO reader")
            admin.execute("ALTER DATABASE postgres SET search_path = public, ext")
        yield server


@pytest.fixture(scope="module")
def reader(server: Postgres) -> Iterator[psycopg.Connection[Any]]:
    """An ordinary login: it may use the schemas, and nothing else."""
    with psycopg.connect(server.dsn().reveal(), user="reader", password="reader", autocommit=True) as session:
        yield session


@pytest.fixture(scope="module")
def inference(reader: psycopg.Connection[Any]) -> Inference:
    return Inference(reader)


@pytest.fixture(scope="module")
def world(server: Postgres) -> Iterator[World]:
    with psycopg.connect(server.dsn().reveal()) as session:
        yield World(session)


@pytest.mark.parametrize("statement", ALL.values(), ids=ALL.keys())
def test_what_is_inferred_is_enough_and_nothing_of_it_too_much(
    world: World, inference: Inference, statement: str
) -> None:
    world.assert_exact(statement, inference.of(statement, placeholders=False))


@pytest.mark.parametrize("statement", WITHOUT_THE_SCHEMA.values(), ids=WITHOUT_THE_SCHEMA.keys())
def test_a_schema_that_makes_the_statement_mean_what_it_says_is_found(
    world: World, inference: Inference, statement: str
) -> None:
    inferred = inference.of(statement, placeholders=False)
    assert inferred.complete
    assert "usage of the schema ext" in [each.describe() for each in inferred.privileges]
    assert world.works(statement, units(inferred.privileges))


def test_without_its_schema_a_comparison_means_something_else(world: World, inference: Inference) -> None:
    statement = "SELECT 1 / (SELECT count(id) FROM app.tags WHERE name = 'UPPER')"
    held = units(inference.of(statement, placeholders=False).privileges)
    with world.admin.transaction(force_rollback=True):
        world.admin.execute("INSERT INTO app.tags VALUES (1, 'a', 'upper')")
        assert world.works(statement, held)
        with pytest.raises(psycopg.errors.DivisionByZero):
            world.works(statement, [each for each in held if each.verb != "schema"])


NOTES = {
    "a text is run": ("SELECT query_to_xml('SELECT a FROM app.t', true, true, '')", "query_to_xml runs or reads"),
    "a table is read by its name": ("SELECT table_to_xml('app.t', true, true, '')", "table_to_xml runs or reads"),
    "statistics of a text": ("SELECT * FROM ts_stat('SELECT v FROM app.stamped')", "ts_stat runs or reads"),
    "query that is rewritten": ("SELECT ts_rewrite('a'::tsquery, 'SELECT q, q FROM app.t')", "ts_rewrite runs"),
    "extension that runs a text": (
        "SELECT * FROM ext.crosstab('SELECT a, b, c FROM app.t') AS x (a text, b int)",
        "ext.crosstab(text) (c) runs as the step",
    ),
    "large object": ("SELECT lo_get(1)", "lo_get needs privileges on large objects"),
    "sequence of a parameter": ("SELECT nextval(%(n)s)", "a sequence that only the run knows"),
    "sequence of an expression": ("SELECT nextval(('app.' || 'ticket')::regclass)", "a sequence that only the run"),
    "last sequence": ("SELECT lastval()", "lastval is called for the last sequence"),
    "set sequence": ("SELECT setval('app.ticket', 1)", "setting app.ticket needs UPDATE"),
    "set sequence of a serial": ("SELECT setval(pg_get_serial_sequence('app.job', 'id'), 9)", "setting app.job_id_seq"),
    "sequence as a table": ("SELECT last_value FROM app.ticket", "reading the sequence app.ticket as a table"),
    "name of a parameter": ("SELECT to_regclass(%(n)s)", "looks up a name that only the run knows"),
    "name of an expression": ("SELECT a::regclass FROM app.t", "looks up a name that only the run knows"),
    "type of an expression": ("SELECT a::regtype FROM app.t", "looks up a name that only the run knows"),
    "trigger behind a view": ("INSERT INTO app.over_watched (a) VALUES (1)", "app.loud() (plpgsql) runs as the step"),
    "trigger of a partition": ("INSERT INTO app.log VALUES (1, 1)", "app.loud() (plpgsql) runs as the step"),
    "trigger of a partition on update": ("UPDATE app.log SET b = 2", "app.loud() (plpgsql) runs as the step"),
    "trigger of a child": ("DELETE FROM app.elder", "app.loud() (plpgsql) runs as the step"),
    "trigger instead": ("UPDATE app.over_instead SET a = 2", "app.loud() (plpgsql) runs as the step"),
    "trigger of a table that a rule writes": ("INSERT INTO app.also VALUES (1)", "app.loud() (plpgsql) runs"),
    "trigger where a row moves from": ("UPDATE app.move SET a = 2", "app.loud() (plpgsql) runs as the step"),
    "trigger that compares a type of somebody's": (
        "INSERT INTO app.touched (a, m) VALUES ('x', 'ok')",
        "app.moody() (plpgsql) runs as the step",
    ),
    "trigger that calls a function of somebody's": ("DELETE FROM app.touched", "app.calling() (plpgsql) runs"),
    "trigger that uses an operator of somebody's": ("DELETE FROM app.compared", "app.operating() (plpgsql) runs"),
    "trigger that reads a table in an expression": ("DELETE FROM app.ident", "app.looking() (plpgsql) runs"),
    "trigger that takes a number": ("INSERT INTO app.compared VALUES (1)", "app.numbering() (plpgsql) runs"),
    "aggregate in PL/pgSQL": ("SELECT app.loud_sum(b) FROM app.t", "app.loud_add(integer, integer) (plpgsql)"),
    "constant of a domain within another": ("SELECT '{7}'::app.positive[]", "needs EXECUTE on what checks it"),
    "constant of a row with a domain": ("SELECT '(7,x)'::app.holder", "needs EXECUTE on what checks it"),
    "foreign table": ("SELECT a FROM app.far", "the server `elsewhere` has no user mapping of PUBLIC"),
    "body that does not parse": ("SELECT app.broken()", "app.broken() is not looked into"),
    "search path that is set": ("SET search_path = own; SELECT id FROM app.t", "SET search_path changes"),
    "executed elsewhere": ("EXECUTE something(1)", "EXECUTE carries out"),
    "procedure that is overloaded": ("CALL app.twice('x')", "which procedure CALL app.twice means"),
    "procedure that is not there": ("CALL app.nothing()", "which procedure CALL app.nothing means"),
    "column of a star": ('SELECT "*" FROM app.starred', "has a column `*`"),
    "owner of an index": ("SELECT brin_summarize_new_values('app.indexed')", "asks for more than EXECUTE"),
    "file of the server": ("SELECT pg_read_file('x')", "pg_read_file asks for more than EXECUTE"),
}

NOISE = """
CREATE SCHEMA hidden; CREATE TABLE hidden.t (a int);
CREATE TABLE app.noisy_base (a int, b int);
CREATE TRIGGER l AFTER INSERT ON app.noisy_base FOR EACH ROW EXECUTE FUNCTION app.loud();
CREATE VIEW app.computed_only AS SELECT count(*) FROM app.t;
CREATE VIEW app.over_watched AS SELECT a, b FROM app.noisy_base;
CREATE TABLE app.log (a int, b int) PARTITION BY LIST (a);
CREATE TABLE app.log_1 PARTITION OF app.log FOR VALUES IN (1);
CREATE TRIGGER l BEFORE INSERT OR UPDATE ON app.log_1 FOR EACH ROW EXECUTE FUNCTION app.loud();
CREATE TABLE app.elder (a int); CREATE TABLE app.younger () INHERITS (app.elder);
CREATE TRIGGER l BEFORE DELETE ON app.younger FOR EACH ROW EXECUTE FUNCTION app.loud();
CREATE VIEW app.instead AS SELECT a FROM app.t WHERE false; CREATE VIEW app.over_instead AS SELECT a FROM app.instead;
CREATE TRIGGER l INSTEAD OF UPDATE ON app.instead FOR EACH ROW EXECUTE FUNCTION app.loud();
CREATE TABLE app.also (a int); CREATE RULE also AS ON INSERT TO app.also DO ALSO INSERT INTO app.noisy_base VALUES (1);
CREATE TABLE app.move (a int) PARTITION BY LIST (a); CREATE TABLE app.move_1 PARTITION OF app.move FOR VALUES IN (1);
CREATE TABLE app.move_2 PARTITION OF app.move FOR VALUES IN (2);
CREATE TRIGGER l AFTER DELETE ON app.move_1 FOR EACH ROW EXECUTE FUNCTION app.loud();
CREATE FUNCTION app.loud_add(int, int) RETURNS int LANGUAGE plpgsql AS 'BEGIN PERFORM 1 FROM app.t; RETURN $1; END';
CREATE AGGREGATE app.loud_sum (int) (SFUNC = app.loud_add, STYPE = int, INITCOND = '0');
CREATE FUNCTION app.moody() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN IF NEW.m = ''ok'' THEN NEW.a := 1; END IF; RETURN NEW; END';
CREATE TRIGGER l BEFORE INSERT ON app.touched FOR EACH ROW EXECUTE FUNCTION app.moody();
CREATE FUNCTION app.calling() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF app.ok(1) THEN RETURN OLD; END IF; END';
CREATE TRIGGER d BEFORE DELETE ON app.touched FOR EACH ROW EXECUTE FUNCTION app.calling();
CREATE FUNCTION app.operating() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN IF OLD.a <-> OLD.b THEN RETURN OLD; END IF; END';
CREATE TRIGGER d BEFORE DELETE ON app.compared FOR EACH ROW EXECUTE FUNCTION app.operating();
CREATE FUNCTION app.looking() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN IF (SELECT max(b) FROM app.t) > 1 THEN RETURN OLD; END IF; RETURN NULL; END';
CREATE TRIGGER d BEFORE DELETE ON app.ident FOR EACH ROW EXECUTE FUNCTION app.looking();
CREATE FUNCTION app.numbering() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN NEW.a := nextval(''app.ticket''); RETURN NEW; END';
CREATE TRIGGER i BEFORE INSERT ON app.compared FOR EACH ROW EXECUTE FUNCTION app.numbering();
CREATE EXTENSION postgres_fdw; CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw;
CREATE FOREIGN TABLE app.far (a int) SERVER elsewhere;
SET check_function_bodies = off; CREATE FUNCTION app.broken() RETURNS int LANGUAGE sql AS 'SELECT nothing FROM nowhere';
CREATE PROCEDURE app.twice(text) LANGUAGE sql AS 'SELECT 1'; CREATE PROCEDURE app.twice(int) LANGUAGE sql AS 'SELECT 1';
CREATE TABLE app.starred ("*" int);
"""


@pytest.mark.parametrize(("statement", "note"), NOTES.values(), ids=NOTES.keys())
def test_what_cannot_be_known_is_a_note_with_its_reason(inference: Inference, statement: str, note: str) -> None:
    inferred = inference.of(statement)
    assert any(note in each for each in inferred.notes), inferred.notes


TYPES: dict[str, tuple[str, object]] = {
    "an optional filter with a number": ("SELECT a FROM app.t WHERE %(n)s IS NULL OR id = %(n)s", {"n": 1}),
    "an optional filter of the run": ("SELECT a FROM app.t WHERE %(n)s IS NULL OR id = %(n)s", {"n": Later("integer")}),
    "an optional filter of any type": ("SELECT a FROM app.t WHERE %(n)s IS NULL OR id = %(n)s", {"n": Later()}),
    "coalesce": ("SELECT a FROM app.t WHERE id = coalesce(%(n)s, %(m)s)", {"n": 1, "m": 2}),
    "to_char": ("SELECT to_char(%(n)s, '99'), a FROM app.t", {"n": 5}),
    "the same for two columns": ("INSERT INTO app.u (id, note) VALUES (%(n)s, %(n)s)", {"n": 5}),
    "object among rows": (
        "INSERT INTO app.t (d, id) VALUES (jsonb_build_object('a', %(x)s), %(id)s)",
        {"x": 5, "id": 77},
    ),
    "concat": ("INSERT INTO app.u (note, id) VALUES (concat(%(x)s, '!'), %(id)s)", {"x": 5, "id": 77}),
    "format": ("SELECT format('%%s', %(x)s), a FROM app.t", {"x": 2.5}),
    "length of a list": ("SELECT array_length(%(x)s, 1), a FROM app.t", {"x": [1, 2]}),
    "one of a list": ("SELECT a FROM app.t WHERE id = ANY (%(x)s)", {"x": [1, 2]}),
    "object": ("INSERT INTO app.t (id, d) VALUES (77, %(d)s)", {"d": {"a": 1}}),
    "by place": ("SELECT a FROM app.t WHERE id = %s AND b < %s", [1, 5]),
    "overload by a number": ("SELECT app.overloaded(%(x)s)", {"x": 5}),
    "overload by a text": ("SELECT app.overloaded(%(x)s)", {"x": "y"}),
    "truth": ("SELECT a FROM app.t WHERE %(b)s", {"b": True}),
    "number with a fraction": ("SELECT a FROM app.t WHERE b < %(x)s", {"x": 2.5}),
}


@pytest.mark.parametrize(("statement", "values"), TYPES.values(), ids=TYPES.keys())
def test_parameters_have_the_types_of_their_values(
    world: World, inference: Inference, statement: str, values: object
) -> None:
    inferred = inference.of(statement, values=values)
    sent = {"n": 1, "m": 2} if isinstance(values, dict) and isinstance(values.get("n"), Later) else values
    if isinstance(sent, dict) and isinstance(sent.get("d"), dict):
        sent = {**sent, "d": Jsonb(sent["d"])}
    world.assert_exact(statement, inferred, sent)


@pytest.mark.parametrize(
    ("statement", "note"),
    [
        ("SELECT app.overloaded(%(x)s)", "which function is called depends on the types of the parameters"),
        ("SELECT array_length(%(x)s, %(y)s) + %(z)s || app.nothing(%(x)s)", "depends on the types of the parameters"),
    ],
)
def test_what_depends_on_a_type_that_is_not_known_is_said(inference: Inference, statement: str, note: str) -> None:
    inferred = inference.of(statement, values={"x": Later(), "y": Later(), "z": Later()})
    assert any(note in each for each in inferred.notes), inferred.notes


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("SELECT ARRAY[]", "cannot determine type of empty array"),
        ("SELECT nope FROM app.t", 'column "nope" does not exist'),
        ("SELECT a FROM hidden.t", "the login that infers may not use hidden"),
        ("SELECT hidden.f(a) FROM app.t", "the login that infers may not use hidden"),
        ("DELETE FROM app.computed_only", "cannot delete from view"),
        ("SELECT app.one(1, 2, 3)", "function app.one(integer, integer, integer) does not exist"),
    ],
)
def test_what_the_server_refuses_is_an_error_of_the_statement(
    inference: Inference, statement: str, message: str
) -> None:
    with pytest.raises(UsageError) as refused:
        inference.of(statement, placeholders=False)
    assert message in refused.value.message
    assert inference.of("SELECT a FROM app.t").complete, "the session goes on"


def test_of_a_table_without_columns_all_are_granted(inference: Inference) -> None:
    (privilege,) = inference.of("SELECT count(*) FROM app.empty").privileges
    assert privilege.as_json() == {"select": "app.empty", "columns": "all"}


def test_a_cast_that_somebody_made_may_run_in_a_body_that_only_computes(
    server: Postgres, reader: psycopg.Connection[Any]
) -> None:
    with psycopg.connect(server.dsn().reveal(), autocommit=True) as admin:
        admin.execute("CREATE FUNCTION app.day(int) RETURNS date LANGUAGE sql AS 'SELECT current_date + $1'")
        admin.execute("CREATE CAST (int AS date) WITH FUNCTION app.day(int) AS ASSIGNMENT")
        try:
            (note,) = Inference(reader).of("SELECT app.half(b) FROM app.t").notes
        finally:
            admin.execute("DROP FUNCTION app.day CASCADE")
    assert "app.half(integer) (plpgsql) runs as the step" in note
    assert Inference(reader).of("SELECT app.half(b) FROM app.t").complete


def test_no_policy_for_everybody_is_remarked(inference: Inference) -> None:
    inferred = inference.of("SELECT id FROM app.only_app")
    assert inferred.complete
    (remark,) = inferred.remarks
    assert "no permissive policy of it is for select by a step's login, which sees no row" in remark
    assert "CREATE POLICY ... ON app.only_app FOR SELECT TO PUBLIC or TO the scope role" in remark
    assert inference.of("SELECT body FROM app.doc").remarks == ()


@pytest.mark.parametrize("statement", POLICIES.values(), ids=POLICIES.keys())
def test_a_superuser_infers_what_an_ordinary_login_does(server: Postgres, inference: Inference, statement: str) -> None:
    with open_catalogs({"db": server.dsn()}) as catalogs:
        assert catalogs.of("db").of(statement) == inference.of(statement)


def test_who_passes_row_security_by_says_so(server: Postgres) -> None:
    with psycopg.connect(server.dsn().reveal(), autocommit=True) as session:
        inferred = Inference(session).of("SELECT body FROM app.doc")
    assert any("row security of app.doc is for the step" in each for each in inferred.notes)


@pytest.mark.parametrize(
    ("change", "back", "schema"),
    [
        ("ALTER DATABASE postgres SET search_path = own, ext", None, "own"),
        ("ALTER ROLE ALL SET search_path = own", "ALTER ROLE ALL RESET search_path", "public"),
        ("ALTER DATABASE postgres RESET search_path; ALTER ROLE ALL SET search_path = own", "", "own"),
    ],
)
def test_names_are_looked_up_by_the_path_of_a_fresh_login(
    server: Postgres, change: str, back: str | None, schema: str
) -> None:
    with psycopg.connect(server.dsn().reveal(), autocommit=True) as admin:
        try:
            admin.execute(change.encode())
            with open_catalogs({"db": reader_dsn(server)}) as catalogs:
                found = catalogs.of("db").of("SELECT id FROM basket").privileges
            with psycopg.connect(server.dsn().reveal(), autocommit=True) as fresh:
                meant = fresh.execute(
                    "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'basket'::regclass"
                ).fetchone()
        finally:
            admin.execute("ALTER ROLE ALL RESET search_path")
            admin.execute("ALTER DATABASE postgres SET search_path = public, ext")
    assert [each.schema for each in found] == [schema]
    assert meant == (schema,)


def test_the_path_of_the_server_is_followed(server: Postgres) -> None:
    with psycopg.connect(server.dsn().reveal(), autocommit=True) as admin:
        try:
            admin.execute("ALTER DATABASE postgres RESET search_path")
            admin.execute("ALTER SYSTEM SET search_path = own")
            admin.execute("SELECT pg_reload_conf()")
            wait_for(lambda: path_of(server) == "own", "the new configuration")
            with open_catalogs({"db": reader_dsn(server)}) as catalogs:
                found = catalogs.of("db").of("SELECT id FROM basket").privileges
        finally:
            admin.execute("ALTER SYSTEM RESET search_path")
            admin.execute("SELECT pg_reload_conf()")
            admin.execute("ALTER DATABASE postgres SET search_path = public, ext")
    assert [each.schema for each in found] == ["own"]


def test_a_path_of_the_reader_alone_is_not_that_of_a_step(server: Postgres) -> None:
    with psycopg.connect(server.dsn().reveal(), autocommit=True) as admin:
        try:
            admin.execute("ALTER ROLE reader SET search_path = own")
            with open_catalogs({"db": reader_dsn(server)}) as catalogs:
                assert [each.schema for each in catalogs.of("db").of("SELECT id FROM basket").privileges] == ["public"]
            admin.execute("ALTER DATABASE postgres RESET search_path")
            with open_catalogs({"db": reader_dsn(server)}) as catalogs, pytest.raises(UsageError, match="of its own"):
                catalogs.of("db")
        finally:
            admin.execute("ALTER ROLE reader RESET search_path")
            admin.execute("ALTER DATABASE postgres SET search_path = public, ext")


def reader_dsn(server: Postgres) -> Secret:
    return Secret(make_conninfo(server.dsn().reveal(), user="reader", password="reader"))


def path_of(server: Postgres) -> str:
    with psycopg.connect(server.dsn().reveal()) as session:
        row = session.execute("SHOW search_path").fetchone()
    return str(row and row[0])
