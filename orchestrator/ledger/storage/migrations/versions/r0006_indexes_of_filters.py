"""Indexes that serve the filters with their states, of closed leases only, one of what is open, and the origins."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0006"
down_revision = "r0005"

ORIGIN = ("workflow", "step", "agent", "grant_kind", "resource")

REPLACED = {
    "lease": (
        "lease_by_workflow",
        "lease_by_step",
        "lease_by_agent",
        "lease_by_state",
        "lease_by_resource",
        "lease_by_grant_kind",
        "lease_by_step_key",
        "lease_by_vault_lease_id",
    ),
    "run": ("run_by_time", "run_by_workflow", "run_by_state"),
}


def upgrade() -> None:
    """Replace the indexes of the filters."""
    for table, indexes in REPLACED.items():
        for index in indexes:
            op.drop_index(index, table)
    _index_leases()
    _index_runs()
    _note_origins()


def _index_leases() -> None:
    in_order = ["requested_at", "lease_id"]
    op.create_index("lease_by_step_key", "lease", ["step_key"])
    _create_partial("lease_by_vault_lease_id", "lease", ["vault_lease_id"], "vault_lease_id <> ''")
    _create_partial("lease_open", "lease", in_order, "closed_at IS NULL")
    for name, columns in {
        "lease_by_state": ["state"],
        "lease_by_workflow": ["workflow", "state"],
        "lease_by_origin": [*ORIGIN, "state"],
        "lease_by_step": ["step", "state"],
        "lease_by_agent": ["agent", "state"],
        "lease_by_grant_kind": ["grant_kind", "state"],
        "lease_by_resource": ["resource", "state"],
    }.items():
        _create_partial(name, "lease", [*columns, *in_order], "closed_at IS NOT NULL")


def _index_runs() -> None:
    in_order = ["started_at", "run_id"]
    _create_partial("run_by_time", "run", in_order, "workflow <> '(sweep)'")
    _create_partial("run_by_state", "run", ["state", *in_order], "workflow <> '(sweep)'")
    op.create_index("run_by_workflow", "run", ["workflow", "state", *in_order])
    _create_partial("run_running", "run", ["run_id"], "state = 'running'")
    _create_partial("run_owner_to_cancel", "run_owner", ["runner_id"], "cancel IS NOT NULL")


def _create_partial(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def _note_origins() -> None:
    text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.create_table("lease_origin", *(sa.Column(name, text, nullable=False) for name in ORIGIN))
    op.create_index("lease_origin_by_all", "lease_origin", list(ORIGIN))
    op.execute(
        "INSERT INTO lease_origin (workflow, step, agent, grant_kind, resource)"
        " SELECT DISTINCT workflow, step, agent, grant_kind, resource FROM lease"
    )
    for statement in TRIGGERS[op.get_bind().dialect.name]:
        op.execute(statement)


# Without a constraint: a transaction that adds a new origin would hold up every other that adds the same.
_NOTE = """
    INSERT INTO lease_origin (workflow, step, agent, grant_kind, resource)
    SELECT NEW.workflow, NEW.step, NEW.agent, NEW.grant_kind, NEW.resource
    WHERE NOT EXISTS (
        SELECT 1 FROM lease_origin
        WHERE workflow = NEW.workflow AND step = NEW.step AND agent = NEW.agent
        AND grant_kind = NEW.grant_kind AND resource = NEW.resource
    );
"""

TRIGGERS = {
    "sqlite": (f"CREATE TRIGGER lease_notes_origin AFTER INSERT ON lease BEGIN {_NOTE} END",),
    "postgresql": (
        f"""
        CREATE FUNCTION note_lease_origin() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN {_NOTE} RETURN NULL; END $$
        """,
        """
        CREATE TRIGGER lease_notes_origin AFTER INSERT ON lease
        FOR EACH ROW EXECUTE FUNCTION note_lease_origin()
        """,
    ),
}
"""What keeps the origins, by dialect."""
