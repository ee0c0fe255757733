"""How long `orchestrator grants infer` takes on a large catalog, beside bare PREPAREs of the same SQL.

    python benchmarks/inference.py [--tables 2000] [--rounds 3] [--at-most 1.2]

The database has so many tables of 21 columns each. Each kind of workflow is inferred by a fresh process, from its start
to its end; the bare loop prepares the same statements over one session and looks at nothing. Exits with 1 where the
fastest round of 100 steps on one table each takes more than `--at-most` seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from orchestrator.devstack.postgres import Postgres

COLUMNS = 20
_SELECT = "SELECT {names} FROM app.t{n} WHERE id = %(id)s"
_INSERT = "INSERT INTO app.t{n} (id, c1, c2) VALUES (%(id)s, 'x', 'y') RETURNING c3"
_UPDATE = "UPDATE app.t{n} SET c4 = 'x' WHERE id = %(id)s AND c5 <> c6"
_SIMPLE = (_SELECT.replace("{names}", "c1, c2, c3"), _INSERT, _UPDATE)


def simple(step: int, tables: int) -> str:
    """One of three statements on a table of its own."""
    return _SIMPLE[step % 3].format(n=step * 7 % tables)


def joined(step: int, tables: int) -> str:
    """Ten tables, a column of each."""
    numbers = [(step * 10 + each) * 7 % tables for each in range(10)]
    joins = " ".join(f"JOIN app.t{n} j{i} ON j{i}.id = j0.id" for i, n in enumerate(numbers[1:], 1))
    names = ", ".join(f"j{i}.c{i + 1} AS n{i}" for i in range(10))
    return f"SELECT {names} FROM app.t{numbers[0]} j0 {joins} WHERE j0.id = %(id)s"


def stars(step: int, tables: int) -> str:
    """Everything of thirty tables."""
    numbers = [(step + each * 3) % tables for each in range(30)]
    return f"SELECT count(j0) FROM app.t{numbers[0]} j0 " + " ".join(
        f"JOIN (SELECT * FROM app.t{n}) j{i} USING (id)" for i, n in enumerate(numbers[1:], 1)
    )


KINDS = {
    "1 step": (1, simple),
    "100 steps": (100, simple),
    "100 steps of ten tables": (100, joined),
    "100 steps of `*` over thirty tables": (100, stars),
    "500 steps": (500, simple),
}


def main() -> int:
    """Print a table; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-most", type=float, default=1.2)
    arguments = parser.parse_args()
    slow = False
    with tempfile.TemporaryDirectory() as folder, database(Path(folder), arguments.tables) as dsn:
        print(f"{'':<38}{'seconds':>9}{'bare':>9}{'a step':>10}")
        for name, (steps, kind) in KINDS.items():
            statements = [kind(number, arguments.tables) for number in range(steps)]
            file = Path(folder) / "workflow.yaml"
            file.write_text(workflow(statements))
            taken = min(inferred(file, dsn) for _ in range(arguments.rounds))
            bare = min(prepared(statements, dsn) for _ in range(arguments.rounds))
            print(f"{name:<38}{taken:>9.2f}{bare:>9.2f}{taken / steps * 1000:>8.1f}ms")
            slow = slow or (name == "100 steps" and taken > arguments.at_most)
    return int(slow)


@contextmanager
def database(folder: Path, tables: int) -> Iterator[str]:
    """A database with so many tables, and the DSN of a login that may use their schema and nothing else."""
    with Postgres(folder / "server") as server:
        with psycopg.connect(server.dsn().reveal(), autocommit=True) as admin:
            columns = ", ".join(f"c{number} text" for number in range(1, COLUMNS + 1))
            admin.execute("CREATE SCHEMA app; CREATE ROLE reader LOGIN PASSWORD 'reader'")
            admin.execute("GRANT USAGE ON SCHEMA app TO reader")
            for first in range(0, tables, 100):
                some = range(first, min(first + 100, tables))
                made = "; ".join(f"CREATE TABLE app.t{n} (id int PRIMARY KEY, {columns})" for n in some)
                admin.execute(made.encode())
            admin.execute("ANALYZE pg_catalog.pg_class")
            admin.execute("ANALYZE pg_catalog.pg_attribute")
        yield psycopg.conninfo.make_conninfo(server.dsn().reveal(), user="reader", password="reader")


def workflow(statements: list[str]) -> str:
    """The workflow file, with a grant that is not what is needed in each step."""
    lines = ["version: 1", "name: large", "agent: benchmark", "inputs:", "  id: { type: integer }", "steps:"]
    for number, statement in enumerate(statements):
        placeholders = "%(" in statement
        lines += [
            f"  s{number}:",
            "    action: postgres.execute",
            "    grants:",
            "      db: { kind: database, connection: app, privileges: [{ select: app.t0, columns: [id] }] }",
            "    with:",
            f'      sql: "{statement}"',
            *(['      parameters: { id: "${{ inputs.id }}" }'] if placeholders else []),
        ]
    return "\n".join(lines) + "\n"


def inferred(file: Path, dsn: str) -> float:
    """Seconds of one process."""
    environment = {**os.environ, "ORCHESTRATOR_CATALOG_DATABASES__APP": dsn}
    began = time.perf_counter()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("orchestrator")), "grants", "infer", str(file), "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    taken = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"grants infer failed: {done.stderr}")
    return taken


def prepared(statements: list[str], dsn: str) -> float:
    """Seconds in which one session prepares them all."""
    began = time.perf_counter()
    with psycopg.connect(dsn, autocommit=True) as session:
        for statement in statements:
            session.execute(f"PREPARE bare AS {statement.replace('%(id)s', '$1')}".encode(), prepare=True)
            session.execute("DEALLOCATE bare")
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
