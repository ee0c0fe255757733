"""What the page on least privilege says of inferred grants that are not the very smallest: each case is real."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from bench import ROOT
from test_inference_statements import SCHEMA, units, works

from orchestrator.devstack.postgres import Postgres
from orchestrator.grants.privileges import Privilege
from orchestrator.inference.live import Inference

OBJECTS = """
CREATE FUNCTION shop.strictly(integer) RETURNS integer LANGUAGE plpgsql STRICT IMMUTABLE SECURITY DEFINER
    SET search_path = '' AS 'BEGIN RETURN $1; END';
CREATE VIEW shop.both WITH (security_invoker) AS SELECT id, shop.strictly(id) AS more FROM shop.customer;
REVOKE EXECUTE ON FUNCTION shop.strictly FROM PUBLIC;
CREATE TABLE shop.everyones (id integer);
CREATE SEQUENCE shop.for_all;
GRANT SELECT ON shop.everyones TO PUBLIC;
GRANT USAGE ON SEQUENCE shop.for_all TO PUBLIC;
"""
STRICTLY = Privilege("execute", "shop", "strictly(integer)")
ORDERS = Privilege("select", "shop", "orders", ("customer_id",))

NOT_CHECKED = {
    "a function in a view": ("SELECT id FROM shop.both", STRICTLY),
    "a function in WITH": (
        "WITH q AS (SELECT id, shop.strictly(id) AS more FROM shop.customer) SELECT id FROM q",
        STRICTLY,
    ),
    "a function in a subquery": ("SELECT id FROM (SELECT id, shop.strictly(id) AS m FROM shop.customer) q", STRICTLY),
    "a LEFT JOIN that the plan leaves out": (
        "SELECT c.id FROM shop.customer c LEFT JOIN (SELECT DISTINCT customer_id FROM shop.orders) o"
        " ON o.customer_id = c.id",
        ORDERS,
    ),
    "a branch of CASE": ("SELECT CASE WHEN true THEN id ELSE shop.strictly(id) END FROM shop.customer", STRICTLY),
    "a branch of COALESCE": ("SELECT COALESCE(1, shop.strictly(id)) FROM shop.customer", STRICTLY),
    "an argument that is NULL": ("SELECT shop.strictly(NULL), id FROM shop.customer", STRICTLY),
    "a table of PUBLIC": ("SELECT id FROM shop.everyones", Privilege("select", "shop", "everyones", ("id",))),
    "a sequence of PUBLIC": ("SELECT nextval('shop.for_all')", Privilege("usage", "shop", "for_all")),
}


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection[Any]]:
    with Postgres(tmp_path_factory.mktemp("minimality") / "server") as server:
        with psycopg.connect(server.dsn().reveal(), autocommit=True) as admin:
            admin.execute((SCHEMA + OBJECTS).encode())
            admin.execute("CREATE ROLE reader LOGIN PASSWORD 'reader'; CREATE ROLE step NOLOGIN")
        with psycopg.connect(server.dsn().reveal()) as admin:
            yield admin


@pytest.fixture(scope="module")
def inference(admin: psycopg.Connection[Any]) -> Iterator[Inference]:
    info = admin.info
    with psycopg.connect(
        host=info.host, port=info.port, dbname=info.dbname, user="reader", password="reader", autocommit=True
    ) as session:
        yield Inference(session)


@pytest.mark.parametrize("case", NOT_CHECKED)
def test_it_is_inferred_although_the_statement_runs_without_it(
    admin: psycopg.Connection[Any], inference: Inference, case: str
) -> None:
    statement, spare = NOT_CHECKED[case]
    inferred = inference.of(statement, placeholders=False)
    assert spare in inferred.privileges
    assert works(admin, statement, [each for each in units(inferred.privileges) if each != spare])


def test_the_page_names_each_of_them() -> None:
    page = " ".join((ROOT / "docs" / "least-privilege.md").read_text().split())
    told = page[page.index("Some things are inferred") : page.index("The login needs nothing but to connect")]
    for words in ("a view, `WITH` or subquery", "`LEFT JOIN`", "`CASE` or `COALESCE`", "is NULL", "PUBLIC"):
        assert words in told
