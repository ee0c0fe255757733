"""Inferred grants are minimal and sufficient, by machine: each statement runs under its inferred grant, and taking
away any single privilege of it makes the server refuse the statement."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from orchestrator.devstack.postgres import Postgres
from orchestrator.errors import UsageError
from orchestrator.grants.privileges import ALL_COLUMNS, Privilege
from orchestrator.inference.live import Inference, Inferred

SCHEMA = '''
CREATE SCHEMA shop;
CREATE SCHEMA "My Schema";
CREATE TYPE shop.mood AS ENUM ('sad', 'ok');
CREATE TABLE shop.customer (id integer PRIMARY KEY, name text NOT NULL, email text UNIQUE, city text, mood shop.mood);
CREATE TABLE shop.orders (
    id serial PRIMARY KEY, customer_id integer NOT NULL REFERENCES shop.customer (id), placed date DEFAULT CURRENT_DATE,
    total numeric(10, 2) NOT NULL DEFAULT 0, note text
);
CREATE TABLE shop.line (
    order_id integer REFERENCES shop.orders (id) ON DELETE CASCADE, number integer, product text, quantity integer,
    price numeric, amount numeric GENERATED ALWAYS AS (quantity * price) STORED, PRIMARY KEY (order_id, number)
);
CREATE TABLE shop.numbered (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text);
CREATE TABLE "My Schema"."Odd ""Table""" ("Select" integer PRIMARY KEY, "größe" text, "1st" text);
CREATE TABLE shop.event (id integer, day date, what text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE shop.event_2024 PARTITION OF shop.event FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE shop.animal (id integer, name text);
CREATE TABLE shop.dog (bark text) INHERITS (shop.animal);
CREATE VIEW shop.city AS SELECT city, count(*) AS customers FROM shop.customer GROUP BY city;
CREATE VIEW shop.simple AS SELECT id, name, city FROM shop.customer;
CREATE VIEW shop.invoker WITH (security_invoker) AS SELECT id, name FROM shop.customer WHERE city = 'Bonn';
CREATE MATERIALIZED VIEW shop.totals AS SELECT customer_id, sum(total) AS total FROM shop.orders GROUP BY customer_id;
CREATE SEQUENCE shop.ticket;
CREATE TABLE shop.audited (id integer PRIMARY KEY, value text CHECK (length(value) < 100));
CREATE TABLE shop.log (at timestamptz, what text);
CREATE FUNCTION shop.total_of(customer integer) RETURNS numeric LANGUAGE sql STABLE AS
    'SELECT sum(total) FROM shop.orders WHERE customer_id = customer';
CREATE FUNCTION shop.atomic_total(customer integer) RETURNS numeric LANGUAGE sql STABLE
    BEGIN ATOMIC SELECT sum(total) FROM shop.orders WHERE customer_id = customer; END;
CREATE FUNCTION shop.trusted_total(integer) RETURNS numeric LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = shop, pg_temp AS 'SELECT sum(total) FROM shop.orders WHERE customer_id = $1';
CREATE FUNCTION shop.shadow(city text) RETURNS bigint LANGUAGE sql STABLE AS
    'SELECT count(name) FROM shop.customer WHERE city = shadow.city';
CREATE FUNCTION shop.recent(integer) RETURNS SETOF shop.orders LANGUAGE sql STABLE AS
    'SELECT * FROM shop.orders ORDER BY placed DESC LIMIT $1';
CREATE FUNCTION shop.twice(integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
CREATE FUNCTION shop.dynamic(text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE $1; END $$;
CREATE FUNCTION shop.audit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = shop, pg_temp AS
    $$ BEGIN INSERT INTO shop.log VALUES (now(), NEW.value); RETURN NEW; END $$;
CREATE TRIGGER audited AFTER INSERT OR UPDATE ON shop.audited FOR EACH ROW EXECUTE FUNCTION shop.audit();
CREATE FUNCTION shop.invoking() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM FROM shop.log; RETURN NEW; END $$;
CREATE TABLE shop.watched (id integer PRIMARY KEY);
CREATE TRIGGER watched BEFORE INSERT ON shop.watched FOR EACH ROW EXECUTE FUNCTION shop.invoking();
CREATE PROCEDURE shop.tidy() LANGUAGE sql AS 'DELETE FROM shop.log WHERE what IS NULL';
CREATE AGGREGATE shop.product (numeric) (sfunc = numeric_mul, stype = numeric, initcond = '1');
CREATE FUNCTION shop.same(shop.mood, shop.mood) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 = $2';
CREATE OPERATOR shop.=== (leftarg = shop.mood, rightarg = shop.mood, function = shop.same);
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA shop FROM PUBLIC;
REVOKE EXECUTE ON ALL PROCEDURES IN SCHEMA shop FROM PUBLIC;
GRANT USAGE ON SCHEMA shop, "My Schema" TO PUBLIC;
INSERT INTO shop.customer VALUES (1, 'Ann', 'a@x', 'Bonn', 'ok'), (2, 'Bob', 'b@x', 'Rome', 'sad');
INSERT INTO shop.orders (customer_id, total) VALUES (1, 10), (2, 20);
INSERT INTO shop.line VALUES (1, 1, 'pen', 2, 5);
INSERT INTO "My Schema"."Odd ""Table""" VALUES (1, 'x', 'y');
'''

STATEMENTS = {
    "one column": "SELECT name FROM shop.customer",
    "star": "SELECT * FROM shop.customer",
    "qualified star": "SELECT c.* FROM shop.customer c",
    "where": "SELECT name FROM shop.customer WHERE city = 'Bonn'",
    "order by": "SELECT name FROM shop.customer ORDER BY email",
    "group by and having": "SELECT city FROM shop.customer GROUP BY city HAVING count(email) > 0",
    "distinct on": "SELECT DISTINCT ON (city) name FROM shop.customer",
    "window": "SELECT rank() OVER (PARTITION BY city ORDER BY name) FROM shop.customer",
    "count star": "SELECT count(*) FROM shop.customer",
    "constant": "SELECT 1 FROM shop.line",
    "exists": "SELECT EXISTS (SELECT FROM shop.customer WHERE city = 'Bonn')",
    "whole row": "SELECT c FROM shop.customer c",
    "row to json": "SELECT row_to_json(c) FROM shop.customer c",
    "system column": "SELECT ctid FROM shop.customer",
    "join on": "SELECT c.name FROM shop.customer c JOIN shop.orders o ON o.customer_id = c.id",
    "join using": "SELECT l.product FROM shop.line l JOIN shop.line m USING (order_id)",
    "natural join": "SELECT a.name FROM shop.animal a NATURAL JOIN shop.dog d",
    "left join": "SELECT c.name FROM shop.customer c LEFT JOIN shop.orders o ON o.customer_id = c.id"
    " WHERE o.id IS NULL",
    "cross join with nothing read": "SELECT c.name FROM shop.customer c CROSS JOIN shop.orders",
    "subquery in from": "SELECT n FROM (SELECT name AS n, city FROM shop.customer) q",
    "correlated subquery": "SELECT name FROM shop.customer c WHERE 5 < (SELECT sum(total) FROM shop.orders o"
    " WHERE o.customer_id = c.id)",
    "in subquery": "SELECT name FROM shop.customer WHERE id IN (SELECT customer_id FROM shop.orders)",
    "lateral": "SELECT c.name, l.total FROM shop.customer c, LATERAL (SELECT total FROM shop.orders o"
    " WHERE o.customer_id = c.id LIMIT 1) l",
    "with": "WITH big AS (SELECT customer_id FROM shop.orders WHERE total > 5) SELECT name FROM shop.customer, big"
    " WHERE id = customer_id",
    "with that is not used": "WITH unused AS (SELECT email FROM shop.customer) SELECT 1",
    "recursive": "WITH RECURSIVE n AS (SELECT min(id) AS id FROM shop.orders UNION ALL SELECT n.id + 1 FROM n"
    " WHERE n.id < 3) SELECT id FROM n",
    "name of a table hidden by with": "WITH orders AS (SELECT 1 AS id) SELECT id FROM orders",
    "union": "SELECT name FROM shop.customer UNION SELECT product FROM shop.line",
    "values": "SELECT v.a, c.name FROM (VALUES (1)) v (a) JOIN shop.customer c ON c.id = v.a",
    "quoting": 'SELECT "größe" FROM "My Schema"."Odd ""Table""" WHERE "Select" = 1',
    "parameters": "SELECT name FROM shop.customer WHERE city = %(city)s AND id > %(id)s",
    "a parameter of no known type": "SELECT %(x)s, name FROM shop.customer",
    "like with a percent sign": "SELECT name FROM shop.customer WHERE name LIKE 'A%%' AND id = %(id)s",
    "partitioned": "SELECT what FROM shop.event WHERE day = '2024-05-01'",
    "inherited": "SELECT name FROM shop.animal",
    "only": "SELECT name FROM ONLY shop.animal",
    "view": "SELECT customers FROM shop.city",
    "view with star": "SELECT * FROM shop.simple",
    "security invoker view": "SELECT name FROM shop.invoker",
    "materialized view": "SELECT total FROM shop.totals",
    "insert": "INSERT INTO shop.customer (id, name) VALUES (3, 'Cid')",
    "insert without a list": "INSERT INTO shop.log VALUES (now(), 'x')",
    "insert with fewer values": "INSERT INTO shop.log VALUES (now())",
    "insert default values": "INSERT INTO shop.log DEFAULT VALUES",
    "insert with a serial": "INSERT INTO shop.orders (customer_id) VALUES (1)",
    "insert with an identity": "INSERT INTO shop.numbered (what) VALUES ('x')",
    "insert from select": "INSERT INTO shop.log (what) SELECT name FROM shop.customer",
    "insert returning": "INSERT INTO shop.log (what) VALUES ('x') RETURNING at",
    "insert into a view": "INSERT INTO shop.simple (id, name) VALUES (9, 'Zoe')",
    "insert with a trigger that runs as its owner": "INSERT INTO shop.audited VALUES (1, 'x')",
    "on conflict do nothing": "INSERT INTO shop.customer (id, name) VALUES (1, 'x') ON CONFLICT DO NOTHING",
    "on conflict with a target": "INSERT INTO shop.customer (id, name) VALUES (1, 'x') ON CONFLICT (id) DO NOTHING",
    "on conflict do update": "INSERT INTO shop.customer AS c (id, name) VALUES (1, 'x') ON CONFLICT (id)"
    " DO UPDATE SET name = excluded.name, city = 'Bonn' WHERE c.email IS NOT NULL",
    "on constraint": "INSERT INTO shop.customer (id, name) VALUES (1, 'x') ON CONFLICT ON CONSTRAINT customer_pkey"
    " DO NOTHING",
    "update": "UPDATE shop.customer SET city = 'Rome'",
    "update where": "UPDATE shop.customer SET city = 'Rome' WHERE id = 1",
    "update from itself": "UPDATE shop.orders SET total = total + 1",
    "update from": "UPDATE shop.orders o SET note = c.name FROM shop.customer c WHERE c.id = o.customer_id",
    "update returning": "UPDATE shop.customer SET city = 'Rome' RETURNING name",
    "update of a partition key": "UPDATE shop.event SET what = 'x' WHERE id = 1",
    "update of several": "UPDATE shop.orders SET (note, total) = (SELECT 'x', 2)",
    "update to a default": "UPDATE shop.orders SET placed = DEFAULT",
    "delete": "DELETE FROM shop.log",
    "delete where": "DELETE FROM shop.orders WHERE total < 0",
    "delete using": "DELETE FROM shop.line l USING shop.orders o WHERE o.id = l.order_id AND o.total < 0",
    "delete returning": "DELETE FROM shop.log RETURNING what",
    "delete with a cascade": "DELETE FROM shop.orders WHERE id = 77",
    "merge": "MERGE INTO shop.customer c USING shop.orders o ON c.id = o.customer_id"
    " WHEN MATCHED AND o.total > 5 THEN UPDATE SET city = o.note"
    " WHEN NOT MATCHED THEN INSERT (id, name) VALUES (o.customer_id, 'new')",
    "merge with delete": "MERGE INTO shop.line l USING (SELECT id FROM shop.orders) o ON l.order_id = o.id"
    " WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN DO NOTHING",
    "writing with": "WITH gone AS (DELETE FROM shop.log RETURNING what)"
    " INSERT INTO shop.audited SELECT 1, what FROM gone",
    "for update": "SELECT name FROM shop.customer FOR UPDATE",
    "for share of one": "SELECT c.name FROM shop.customer c JOIN shop.orders o ON o.customer_id = c.id FOR SHARE OF c",
    "function": "SELECT shop.twice(id) FROM shop.customer",
    "function that reads": "SELECT shop.total_of(1)",
    "function with an atomic body": "SELECT shop.atomic_total(1)",
    "function that runs as its owner": "SELECT shop.trusted_total(1)",
    "function whose argument has the name of a column": "SELECT shop.shadow('Bonn')",
    "set-returning function": "SELECT total FROM shop.recent(3)",
    "aggregate": "SELECT shop.product(total) FROM shop.orders",
    "operator": "SELECT name FROM shop.customer WHERE mood OPERATOR(shop.===) 'ok'",
    "nextval": "SELECT nextval('shop.ticket')",
    "currval": "SELECT nextval('shop.ticket'), currval('shop.ticket')",
    "call": "CALL shop.tidy()",
    "explain": "EXPLAIN SELECT name FROM shop.customer",
    "declare": "DECLARE c CURSOR FOR SELECT name FROM shop.customer; FETCH 1 FROM c",
    "prepare": "DEALLOCATE ALL; PREPARE q AS SELECT name FROM shop.customer; EXECUTE q",
    "several": "SELECT name FROM shop.customer; UPDATE shop.orders SET note = 'x'",
    "catalog": "SELECT relname FROM pg_class",
    "information schema": "SELECT table_name FROM information_schema.tables",
    "generate series": "SELECT n FROM generate_series(1, 3) n",
    "case and cast": "SELECT CASE WHEN city = 'Bonn' THEN id::text ELSE name END FROM shop.customer",
    "array subscript and json": "SELECT (array_agg(name))[1], json_build_object('c', max(city)) FROM shop.customer",
    "grouping sets": "SELECT city, mood, count(*) FROM shop.customer GROUP BY GROUPING SETS ((city), (mood))",
    "filter": "SELECT count(id) FILTER (WHERE city = 'Bonn') FROM shop.customer",
    "copy out": "COPY shop.customer (id, name) TO STDOUT",
    "copy out all": "COPY shop.orders TO STDOUT",
    "copy a query": "COPY (SELECT name FROM shop.customer) TO STDOUT",
    "copy in": "COPY shop.customer (id, name) FROM STDIN",
    "copy in with a serial": "COPY shop.orders (customer_id) FROM STDIN",
    "copy in all": "COPY shop.log FROM STDIN",
}

COPIED = {
    "COPY shop.customer (id, name) FROM STDIN": "9\tZoe\n",
    "COPY shop.orders (customer_id) FROM STDIN": "1\n",
    "COPY shop.log FROM STDIN": "\\N\tx\n",
}
PARAMETERS = {"city": "Bonn", "id": 0, "x": "y"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("inference") / "server") as server:
        with psycopg.connect(server.dsn().reveal(), autocommit=True) as admin:
            admin.execute(SCHEMA.encode())
            admin.execute("CREATE ROLE reader LOGIN PASSWORD 'reader'; CREATE ROLE step NOLOGIN")
        yield server


@pytest.fixture(scope="module")
def inference(server: Postgres) -> Iterator[Inference]:
    """An ordinary login, with no privilege on any table."""
    with psycopg.connect(server.dsn().reveal(), user="reader", password="reader", autocommit=True) as session:
        yield Inference(session)


@pytest.fixture(scope="module")
def admin(server: Postgres) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(server.dsn().reveal()) as session:
        yield session


def units(privileges: tuple[Privilege, ...]) -> list[Privilege]:
    """Each privilege of one column by itself."""
    return [
        Privilege(each.verb, each.schema, each.name, (column,)) if column else each
        for each in privileges
        for column in (each.columns if each.columns and each.columns != ALL_COLUMNS else ("",))
    ]


def grant(session: psycopg.Connection[Any], privilege: Privilege) -> None:
    name: sql.Composable = sql.Identifier(privilege.schema, privilege.name)
    kind = {"execute": "ROUTINE ", "usage": "SEQUENCE "}.get(privilege.verb, "")
    if privilege.verb == "execute":
        name = sql.SQL("{}.{}").format(sql.Identifier(privilege.schema), sql.SQL(privilege.name))
    columns = sql.SQL("")
    if privilege.columns and privilege.columns != ALL_COLUMNS:
        columns = sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, privilege.columns)))
    verb = sql.SQL(privilege.verb.upper())
    session.execute(sql.SQL("GRANT {}{} ON {}{} TO step").format(verb, columns, sql.SQL(kind), name))


def works(admin: psycopg.Connection[Any], statement: str, held: list[Privilege]) -> bool:
    """Whether a role that holds exactly these privileges may carry the statement out; everything is rolled back."""
    try:
        with admin.transaction(force_rollback=True):
            for privilege in held:
                grant(admin, privilege)
            admin.execute("SET LOCAL ROLE step")
            run(admin, statement)
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def run(session: psycopg.Connection[Any], statement: str) -> None:
    with session.cursor() as cursor:
        if statement.startswith("COPY"):
            with cursor.copy(statement) as copy:  # type: ignore[arg-type]
                if "TO STDOUT" in statement:
                    list(copy)
                else:
                    copy.write(COPIED[statement])
        elif "%(" in statement:
            cursor.execute(statement, PARAMETERS)  # type: ignore[call-overload]
        else:
            cursor.execute(statement.encode())


def assert_minimal(admin: psycopg.Connection[Any], statement: str, inferred: Inferred) -> None:
    held = units(inferred.privileges)
    assert works(admin, statement, held), f"not sufficient: {[each.describe() for each in held]}"
    for number, unit in enumerate(held):
        rest = held[:number] + held[number + 1 :]
        assert not works(admin, statement, rest), f"not minimal: {unit.describe()} is not needed"


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS.keys())
def test_the_inferred_grant_is_sufficient_and_minimal(
    admin: psycopg.Connection[Any], inference: Inference, statement: str
) -> None:
    inferred = inference.of(statement, placeholders="%" in statement)
    assert inferred.complete, inferred.notes
    assert_minimal(admin, statement, inferred)


TPCH = Path(__file__).parents[1] / "data" / "tpch"


@pytest.fixture(scope="module")
def tpch(server: Postgres) -> Iterator[tuple[psycopg.Connection[Any], Inference]]:
    with psycopg.connect(server.dsn().reveal(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE tpch")
    with (
        psycopg.connect(server.dsn("tpch").reveal()) as admin,
        psycopg.connect(server.dsn("tpch").reveal(), user="reader", password="reader", autocommit=True) as reader,
    ):
        admin.execute((TPCH / "schema.sql").read_bytes())
        admin.commit()
        yield admin, Inference(reader)


@pytest.mark.parametrize("number", range(1, 23))
def test_each_query_of_tpch_runs_under_its_inferred_grant_and_under_nothing_less(
    tpch: tuple[psycopg.Connection[Any], Inference], number: int
) -> None:
    admin, inference = tpch
    query = (TPCH / f"q{number:02}.sql").read_text()
    inferred = inference.of(query, placeholders=False)
    assert inferred.complete
    assert {each.verb for each in inferred.privileges} == {"select"}
    assert_minimal(admin, query, inferred)


@pytest.mark.parametrize(
    ("statement", "note"),
    [
        ("DO $$ BEGIN DELETE FROM shop.log; END $$", "DO runs code"),
        ("SELECT shop.dynamic('DELETE FROM shop.log')", "declare what its body needs"),
        ("INSERT INTO shop.watched VALUES (1)", "the trigger function shop.invoking()"),
        ("TRUNCATE shop.log", "TRUNCATE needs a privilege"),
        ("LOCK TABLE shop.log", "LOCK needs a privilege"),
        ("CREATE TABLE shop.x (a int)", "not a statement that a grant can allow"),
        ("SELECT setval('shop.ticket', 1)", "setting shop.ticket needs UPDATE"),
        ("COPY shop.log TO PROGRAM 'cat'", "not for a step"),
        ("SELECT * INTO shop.copy FROM shop.log", "creates a table"),
    ],
)
def test_what_cannot_be_known_is_said(inference: Inference, statement: str, note: str) -> None:
    inferred = inference.of(statement, placeholders=False)
    assert not inferred.complete
    assert any(note in each for each in inferred.notes), inferred.notes


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("SELEC name FROM shop.customer", "cannot be parsed"),
        ("SELECT nope FROM shop.customer", 'column "nope" does not exist'),
        ("SELECT name FROM shop.nothing", 'relation "shop.nothing" does not exist'),
    ],
)
def test_what_the_database_does_not_know_is_an_error(inference: Inference, statement: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        inference.of(statement)
    assert inference.of("SELECT name FROM shop.customer").complete, "the session goes on"
