"""The tables as SQLAlchemy knows them, without their indexes, which are in `indexes`. `migrations/` creates both.

A test holds them together. Only text and whole numbers are stored, so that a value is the same text in both
databases: times as ISO 8601 in UTC, JSON in its canonical form. On PostgreSQL text sorts by code point
(collation "C"), as in SQLite, which prefix searches and times rely on.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)

metadata = MetaData()

TEXT = Text().with_variant(Text(collation="C"), "postgresql")

SWEEP_WORKFLOW = "(sweep)"
RESTART_WORKFLOW = "(restart)"
"""The name, which no workflow can have, of the runs that look for expired logins: `orchestrator.recovery.orphans`."""

# The conditions of the partial indexes. A query says them in the same words, since SQLite compares the words
# (https://sqlite.org/partialindex.html, section 3).
IS_OPEN = text("closed_at IS NULL")
IS_CLOSED = text("closed_at IS NOT NULL")
HAS_VAULT_LEASE = text("vault_lease_id <> ''")
BY_ITSELF = text(f"workflow <> '{SWEEP_WORKFLOW}' AND task IS NULL")
"""Runs that somebody began as such: no sweep, no task, and no call in one."""
IS_TASK = text("task = run_id")
OF_TASK = text("task IS NOT NULL")
IS_RETRY = text("retry_of IS NOT NULL")
IS_RUNNING = text("state = 'running'")
IS_UNLOGGED = text("finished_at IS NOT NULL AND logged < seq")
"""Runs that have ended and whose history, as it is, is not in the log yet."""
HAS_VALUES = text(f"finished_at IS NOT NULL AND dropped < 3 AND inline = 0 AND workflow <> '{SWEEP_WORKFLOW}'")
"""What has ended and may have values that can be dropped; a sweep was given nothing."""
IS_WANTED = text("(cancel IS NOT NULL OR renewal = '')")
"""Runs of which somebody wants something: that they end, or that what they have handed over lives longer."""

run = Table(
    "run",
    metadata,
    Column("run_id", TEXT, primary_key=True),
    Column("fence", Integer, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("head", TEXT, nullable=False),
    Column("workflow", TEXT, nullable=False),
    Column("digest", TEXT, nullable=False),
    Column("agent", TEXT, nullable=False),
    Column("trigger", TEXT, nullable=False),
    Column("inputs", TEXT, nullable=False),
    Column("steps", TEXT, nullable=False),
    Column("state", TEXT, nullable=False),
    Column("started_at", TEXT, nullable=False),
    Column("finished_at", TEXT),
    Column("exit_code", Integer),
    Column("reason", TEXT, nullable=False),
    Column("task", TEXT),
    Column("deadline", TEXT),
    Column("idle", Integer),
    Column("retry_of", TEXT),
    Column("logged", BigInteger, nullable=False, server_default="0"),
    Column("dropped", Integer, nullable=False, server_default="0"),
    Column("inline", Integer, nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)
"""One row a run, and one a task. `fence`, `seq` and `head` are the chain's; the rest follows from the events.

`logged` is the `seq` that is in the log; see `log_leaf`. `dropped` says which kinds of values are gone (1 inputs,
2 outputs); `inline` is 1 for a run of before values lay beside the events, whose values stay for good.

`task` is the task in which a run is a call; a task has its own id there, and is the only one with a `deadline`.
`retry_of` is the failed run that a run goes on from; no two go on from one.
"""

event = Table(
    "event",
    metadata,
    Column("run_id", TEXT, ForeignKey("run.run_id"), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("time", TEXT, nullable=False),
    Column("kind", TEXT, nullable=False),
    Column("data", TEXT, nullable=False),
    Column("digest", TEXT, nullable=False),
    Column("kept", TEXT),
    PrimaryKeyConstraint("run_id", "seq"),
    sqlite_with_rowid=False,
)
"""Append-only: triggers refuse to change, replace or remove a row, except that `kept` may become null.

`kept` are the values that `data`, and with it the chain, holds only digests of, so that they can be dropped.
"""

step = Table(
    "step",
    metadata,
    Column("run_id", TEXT, ForeignKey("run.run_id"), nullable=False),
    Column("step", TEXT, nullable=False),
    Column("state", TEXT, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("step_key", TEXT, nullable=False),
    Column("action", TEXT, nullable=False),
    Column("started_at", TEXT),
    Column("finished_at", TEXT),
    Column("reason", TEXT, nullable=False),
    Column("outputs", TEXT, nullable=False),
    PrimaryKeyConstraint("run_id", "step"),
    sqlite_with_rowid=False,
)

lease = Table(
    "lease",
    metadata,
    Column("lease_id", TEXT, primary_key=True),
    Column("run_id", TEXT, ForeignKey("run.run_id"), nullable=False),
    Column("workflow", TEXT, nullable=False),
    Column("agent", TEXT, nullable=False),
    Column("step", TEXT, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("step_key", TEXT, nullable=False),
    Column("grant", TEXT, nullable=False),
    Column("grant_kind", TEXT, nullable=False),
    Column("resource", TEXT, nullable=False),
    Column("scope", TEXT, nullable=False),
    Column("state", TEXT, nullable=False),
    Column("ttl", Integer, nullable=False),
    Column("requested_at", TEXT, nullable=False),
    Column("issued_at", TEXT),
    Column("expires_at", TEXT),
    Column("closed_at", TEXT),
    Column("vault_lease_id", TEXT, nullable=False),
    Column("accessor", TEXT, nullable=False),
    Column("subject", TEXT, nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("revoking_since", TEXT),
    Column("failed_tries", Integer, nullable=False, server_default="0"),
    Column("last_try_at", TEXT),
)
"""One row a lease. `closed_at` is set exactly where `state` is final."""

lease_origin = Table(
    "lease_origin",
    metadata,
    Column("workflow", TEXT, nullable=False),
    Column("step", TEXT, nullable=False),
    Column("agent", TEXT, nullable=False),
    Column("grant_kind", TEXT, nullable=False),
    Column("resource", TEXT, nullable=False),
)
"""Which combinations of these columns leases have ever had. They are few, since workflows declare them. A trigger on
`lease` adds what is new; two processes that do so at once may add it twice, which is better than waiting."""

ORIGIN = tuple(column.name for column in lease_origin.columns)

schedule = Table(
    "schedule",
    metadata,
    Column("workflow", TEXT, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("handled", TEXT, nullable=False),
    Column("paused", Integer, nullable=False),
    Column("requested", TEXT),
    sqlite_with_rowid=False,
)
"""One row a scheduled workflow: what the scheduler must remember. It is no history and may be changed."""

fire = Table(
    "fire",
    metadata,
    Column("workflow", TEXT, nullable=False),
    Column("trigger", TEXT, nullable=False),
    Column("at", TEXT, nullable=False),
    Column("run_id", TEXT, nullable=False),
    PrimaryKeyConstraint("workflow", "trigger", "at"),
    sqlite_with_rowid=False,
)
"""Which run is that of a nominal time, for all processes: the first one that comes to it draws the id. Kept for good,
since a process that slept long may come to an old time."""

runner = Table(
    "runner",
    metadata,
    Column("runner_id", TEXT, primary_key=True),
    Column("process", TEXT, nullable=False),
    Column("beat", BigInteger, nullable=False),
    Column("gone", Integer, nullable=False),
    Column("recovered_by", TEXT),
    Column("beat_at", TEXT, nullable=False, server_default=""),
    sqlite_with_rowid=False,
)
"""One row a process that runs workflows. `beat` grows while it lives; `gone` is 1 once others may take its runs.
`beat_at` is when it last did so by its own clock, for people: nothing follows from it.

`recovered_by` is the one process that closes what a dead one left. It holds while that process lives.
"""

runner_token = Table(
    "runner_token",
    metadata,
    Column("runner_id", TEXT, nullable=False),
    Column("accessor", TEXT, nullable=False),
    PrimaryKeyConstraint("runner_id", "accessor"),
    sqlite_with_rowid=False,
)
"""Accessors of the Vault tokens that a process logged in for: whoever buries it revokes them."""

run_owner = Table(
    "run_owner",
    metadata,
    Column("run_id", TEXT, primary_key=True),
    Column("runner_id", TEXT, nullable=False),
    Column("cancel", TEXT),
    Column("renewal", TEXT),
    sqlite_with_rowid=False,
)
"""Which process drives a run, written before the run begins, and why somebody wants it cancelled.

`renewal` is empty while somebody wants what it has handed over to be renewed; else why that was not done.
"""

gate = Table(
    "gate",
    metadata,
    Column("name", TEXT, primary_key=True),
    sqlite_with_rowid=False,
)
"""What several processes count at the same time is counted by one after the other: who counts locks the row."""

lease_waiter = Table(
    "lease_waiter",
    metadata,
    Column("run_id", TEXT, nullable=False),
    Column("step", TEXT, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("connection", TEXT, nullable=False),
    Column("leases", Integer, nullable=False),
    Column("most", Integer, nullable=False),
    Column("ticket", BigInteger, nullable=False),
    Column("runner_id", TEXT, nullable=False),
    Column("since", TEXT, nullable=False),
    PrimaryKeyConstraint("run_id", "step", "attempt", "connection"),
    sqlite_with_rowid=False,
)
"""The attempts that wait until a connection has room for so many `leases` of theirs, where `most` may be open.

The rows of an attempt have one `ticket`. It is drawn while the gates of all its connections are locked, above every
ticket that there is: so at each connection tickets are in the order of arrival, whatever the clocks say.
"""

agent_block = Table(
    "agent_block",
    metadata,
    Column("agent", TEXT, primary_key=True),
    Column("until", TEXT),
    Column("by", TEXT, nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("at", TEXT, nullable=False),
    sqlite_with_rowid=False,
)
"""The agents that are cut off: they open no task, call no tool and begin no run. `until` null: until restored."""

workflow_text = Table(
    "workflow_text",
    metadata,
    Column("digest", TEXT, primary_key=True),
    Column("text", TEXT, nullable=False),
    sqlite_with_rowid=False,
)
"""The files as they were when their runs began, so that a run goes on with the version that it started with."""

queued_run = Table(
    "queued_run",
    metadata,
    Column("run_id", TEXT, primary_key=True),
    Column("workflow", TEXT, nullable=False),
    Column("digest", TEXT, nullable=False),
    Column("inputs", TEXT, nullable=False),
    Column("trigger", TEXT, nullable=False),
    Column("queued_at", TEXT, nullable=False),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("reason", TEXT, nullable=False, server_default=""),
    Column("directory", TEXT, nullable=False, server_default=""),
    Column("retry_of", TEXT, nullable=False, server_default=""),
    sqlite_with_rowid=False,
)
"""What was asked of the shared queue, until it has ended: which run is next, and who has it, is said elsewhere.

`tries` counts how often a worker took it in hand and did not begin it: it died, or could not load it.
"""

queue_pause = Table(
    "queue_pause",
    metadata,
    Column("workflow", TEXT, primary_key=True),
    Column("by", TEXT, nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("at", TEXT, nullable=False),
    sqlite_with_rowid=False,
)
"""The workflows of which no run begins that waits in the shared queue; of none at all where the name is empty."""

approval = Table(
    "approval",
    metadata,
    Column("approval_id", TEXT, primary_key=True),
    Column("run_id", TEXT, nullable=False),
    Column("workflow", TEXT, nullable=False),
    Column("step", TEXT, nullable=False),
    Column("subject", TEXT, nullable=False),
    Column("question", TEXT, nullable=False),
    Column("demand", TEXT, nullable=False),
    Column("asked_by", TEXT, nullable=False),
    Column("asked_at", TEXT, nullable=False),
    Column("expires_at", TEXT, nullable=False),
    Column("state", TEXT, nullable=False),
    Column("ended_at", TEXT),
    Column("signature", TEXT, nullable=False),
    sqlite_with_rowid=False,
)
"""What waits for somebody to agree. That it did, and who has agreed, is in the events of the run for good."""

approval_vote = Table(
    "approval_vote",
    metadata,
    Column("approval_id", TEXT, nullable=False),
    Column("voter", TEXT, nullable=False),
    Column("verdict", TEXT, nullable=False),
    Column("at", TEXT, nullable=False),
    Column("statement", TEXT, nullable=False),
    Column("signature", TEXT, nullable=False),
    PrimaryKeyConstraint("approval_id", "voter"),
    sqlite_with_rowid=False,
)
"""Who has agreed or refused, as signed by a key in Vault: whoever can write here makes nothing up."""

request_seen = Table(
    "request_seen",
    metadata,
    Column("request", TEXT, primary_key=True),
    Column("at", TEXT, nullable=False),
    sqlite_with_rowid=False,
)
"""Signed requests from outside that count once, as long as somebody could send them again."""

LEASE_CHANGES = (
    "state",
    "ttl",
    "issued_at",
    "expires_at",
    "closed_at",
    "vault_lease_id",
    "accessor",
    "subject",
    "reason",
    "revoking_since",
    "failed_tries",
    "last_try_at",
)
"""The columns of `lease` that may change after the request."""
