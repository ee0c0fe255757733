"""What a login of a scope role costs beside a login that may do nothing, with many issued at the same time.

    python benchmarks/issuers.py [--issuers 16] [--each 10] [--rounds 9]

16 threads issue a database login through Vault and revoke it, again and again, in ways that take turns:

  scope role   a compiled grant, as provisioning installs it: CREATE ROLE, GRANT of the NOLOGIN scope role
               that holds the privileges on three columns of a table; revoked by `orchestrator.revoke`
  bare role    CREATE ROLE and DROP ROLE only: the login may do nothing
  table grant  CREATE ROLE, and GRANT of the same three columns to each login, as is often done

All are made through Vault's database engine on the same server, with SCRAM hashing and the same lifetime.
Vault carries out the statements of one of its connections one after another; "x 4" is the same over four
connections to the one database, as where several teams or several Vaults issue for it. There the table grants
fight over the table's ACL.

While scope roles are issued PostgreSQL is asked again and again who holds locks on which tables, and at the
end once more while another session holds the table in ACCESS EXCLUSIVE mode. Fails where issuing through
the scope role meets an error, takes a lock on a user table, or leaves a login behind.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import hvac
import psycopg
from hvac.exceptions import VaultError
from installed import GRANT, Servers, servers

from orchestrator.actions.catalog import catalog
from orchestrator.grants.scope import normalise
from orchestrator.workflow.loader import load_text

WORKFLOW = f"""
version: 1
name: bench_issuers
agent: bench
steps:
  read:
    action: exec
    grants: {{ db: {GRANT} }}
    with: {{ command: [/bin/true] }}
    timeout: 5m
"""
CONNECTIONS = 4
CREATE = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
DROP = 'DROP ROLE IF EXISTS "{{name}}"'
COLUMNS = "SELECT (id, kind, comment) ON customer_feedback"
LOCKS = """
SELECT n.nspname IN ('pg_catalog', 'pg_toast', 'information_schema', 'orchestrator') AS ours, c.relname, l.mode
FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.pid <> pg_backend_pid()
"""


@dataclass
class Tally:
    """What became of the issuances of one way: their rates, a second, of each round, and the errors."""

    rates: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def line(self, name: str) -> str:
        failed = ", ".join(f"{count} x {error}" for error, count in self.errors.most_common()) or "none"
        return f"{name:16}{statistics.median(self.rates):6.1f} issued and revoked a second; errors: {failed}"


@dataclass
class Locks:
    """What was seen in `pg_locks`."""

    samples: int = 0
    catalogs: int = 0
    """Locks of others on tables of the system or of our own schema: that these are seen shows that the look is good."""
    user_tables: Counter[str] = field(default_factory=Counter)


def install(stack: Servers) -> dict[str, list[str]]:
    """The Vault roles; returns what to read for each way, one path for each of its connections."""
    workflow = load_text(WORKFLOW, filename="bench.yaml", actions=catalog).workflow
    stack.install([workflow])
    step = workflow.steps["read"]
    compiled = normalise("db", step.grants["db"], step_timeout=step.timeout).resource
    vault = stack.admin
    creation = vault.read(compiled.replace("/creds/", "/roles/"))["data"]["creation_statements"]
    allowed = vault.read("database/config/support")["data"]["allowed_roles"]
    vault.write("database/config/support", allowed_roles=[*allowed, "bare"])
    role(vault, "bare", "support", [CREATE], [DROP])
    for number in range(CONNECTIONS):
        owner_connection(stack, f"owner-{number}")
        role(vault, f"scope-{number}", f"owner-{number}", creation, [DROP])
        role(
            vault,
            f"table-{number}",
            f"owner-{number}",
            [CREATE, f'GRANT {COLUMNS} TO "{{{{name}}}}"'],
            [f'REVOKE {COLUMNS} FROM "{{{{name}}}}"', DROP],
        )
    return {
        "scope role": [compiled],
        "bare role": ["database/creds/bare"],
        "table grant": ["database/creds/table-0"],
        "scope role x 4": [f"database/creds/scope-{number}" for number in range(CONNECTIONS)],
        "table grant x 4": [f"database/creds/table-{number}" for number in range(CONNECTIONS)],
    }


def role(vault: hvac.Client, name: str, connection: str, creation: list[str], revocation: list[str]) -> None:
    vault.write_data(
        f"database/roles/{name}",
        data={
            "db_name": connection,
            "creation_statements": creation,
            "revocation_statements": revocation,
            "default_ttl": 300,
            "max_ttl": 600,
        },
    )


def owner_connection(stack: Servers, name: str) -> None:
    """A connection of Vault's as the owner of the table: granting on a table needs that, a scope role does not."""
    info = stack.provisioned.info
    owner = psycopg.conninfo.conninfo_to_dict(info.support_dsn.reveal())
    stack.admin.write_data(
        f"database/config/{name}",
        data={
            "plugin_name": "postgresql-database-plugin",
            "allowed_roles": ["*"],
            "connection_url": info.support_endpoint.replace("://", "://{{username}}:{{password}}@", 1),
            "username": owner["user"],
            "password": owner["password"],
            "password_authentication": "scram-sha-256",
        },
    )


def issue(stack: Servers, paths: list[str], *, issuers: int, each: int, tally: Tally) -> None:
    """One round: every issuer issues and revokes `each` logins, with a connection of its own."""

    def issuer(number: int) -> Counter[str]:
        client, path = clients[number], paths[number % len(paths)]
        found: Counter[str] = Counter()
        for _ in range(each):
            try:
                lease = client.read(path)["lease_id"]
                client.adapter.put("/v1/sys/leases/revoke", json={"lease_id": lease, "sync": True})
                found["done"] += 1
            except VaultError as error:
                known = "tuple concurrently updated"
                found[known if known in str(error) else str(error).splitlines()[0][:120]] += 1
        return found

    clients = [stack.admin for _ in range(issuers)]
    for client in clients:
        client.lookup_token()  # the connection is open before the clock starts
    with ThreadPoolExecutor(issuers) as pool:
        begin = time.perf_counter()
        results = list(pool.map(issuer, range(issuers)))
        seconds = time.perf_counter() - begin
    total = sum(results, Counter())
    tally.rates.append(total.pop("done", 0) / seconds)
    tally.errors += total


@contextmanager
def watched(stack: Servers, locks: Locks) -> Iterator[None]:
    """Look at the locks of all other sessions, some hundred times a second."""
    over = threading.Event()

    def watch() -> None:
        with psycopg.connect(stack.provisioned.info.support_dsn.reveal(), autocommit=True) as session:
            while not over.wait(0.003):
                locks.samples += 1
                for ours, table, mode in session.execute(LOCKS):
                    locks.catalogs += bool(ours)
                    if not ours:
                        locks.user_tables[f"{mode} on {table}"] += 1

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def logins(stack: Servers) -> int:
    with psycopg.connect(stack.provisioned.info.support_dsn.reveal()) as session:
        row = session.execute("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'orc\\_%'").fetchone()
    assert row is not None
    return int(row[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--issuers", type=int, default=16)
    parser.add_argument("--each", type=int, default=10, help="logins that each issuer issues in a round")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    locks = Locks()
    with servers() as stack:
        paths = install(stack)
        for each in paths.values():
            issue(stack, each, issuers=given.issuers, each=2, tally=Tally())
        tallies = {name: Tally() for name in paths}
        for _ in range(given.rounds):
            for name, each in paths.items():
                issue(stack, each, issuers=given.issuers, each=given.each, tally=tallies[name])
        watching = Tally()
        with watched(stack, locks):
            issue(stack, paths["scope role"], issuers=given.issuers, each=given.each, tally=watching)
        locked = Tally()
        with psycopg.connect(stack.provisioned.info.support_dsn.reveal()) as session:
            session.execute("LOCK TABLE customer_feedback IN ACCESS EXCLUSIVE MODE")
            issue(stack, paths["scope role"], issuers=given.issuers, each=1, tally=locked)
        left = logins(stack)
    for name, tally in tallies.items():
        print(tally.line(name))
    pairs = zip(tallies["scope role"].rates, tallies["bare role"].rates, strict=True)
    ratios = [ours / bare for ours, bare in pairs]
    print(f"throughput, scope role / bare role: {statistics.median(ratios):.2f} (min {min(ratios):.2f})")
    print(
        f"locks while scope roles were issued: {locks.samples} looks at pg_locks, {locks.catalogs} locks on catalogs, "
        f"on user tables {dict(locks.user_tables) or 'none'}"
    )
    print(f"with the table held in ACCESS EXCLUSIVE mode: {locked.rates[0]:.1f} issued and revoked a second")
    for tally in (tallies["scope role"], tallies["bare role"], tallies["scope role x 4"], watching, locked):
        assert not tally.errors, tally.errors
    assert locks.catalogs, "the look at pg_locks saw nothing at all"
    assert not locks.user_tables, locks.user_tables
    assert left == 0, f"{left} logins are left"


if __name__ == "__main__":
    main()
