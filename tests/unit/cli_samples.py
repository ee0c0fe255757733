"""Runs as the ledger would record them: one that works, one that is refused, one that cannot be cleaned up."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from orchestrator.ledger.events import (
    AttemptFinished,
    AttemptStarted,
    Decided,
    Event,
    LeaseDenied,
    LeaseEnded,
    LeaseIssued,
    LeaseRequested,
    LeaseRevocationFailed,
    LeaseRevoked,
    LeaseRevoking,
    RunFinished,
    RunStarted,
    StepFinished,
)
from orchestrator.ledger.states import RunState, StepState

RUN = "run_01KJP3Q0S0ABCDEFGHJKMNPQRS"
START = datetime(2026, 3, 2, 5, 0, 5, tzinfo=UTC)
DB = "lease_aaaaaaaaaaaaaaaaaaaa"
TOKEN = "lease_bbbbbbbbbbbbbbbbbbbb"
BOT = "lease_cccccccccccccccccccc"

STARTED = RunStarted(
    workflow="customer_feedback",
    digest="sha256:" + "ab" * 32,
    agent="feedback-assistant",
    trigger="manual",
    inputs={"limit": 5, "channel": "#support", "key": "***"},
    steps=("read", "notify"),
)
READ_SCOPE = {
    "name": "db",
    "kind": "database",
    "resource": "database/creds/feedback-read",
    "ttl": 120,
    "connection": "support",
    "role": "feedback-read",
}
BOT_SCOPE = {
    "name": "bot",
    "kind": "secret",
    "resource": "secret/data/slack/support-bot",
    "ttl": 60,
    "keys": ["token"],
}


def begins(step: str, action: str, attempt: int = 1) -> list[Event]:
    return [
        AttemptStarted(step=step, attempt=attempt, step_key=f"{step}-k3v9w2m7q4xa", action=action, timeout=30),
        Decided(
            step=step,
            attempt=attempt,
            engine="rego",
            revision="sha256:00",
            input_digest="sha256:11",
            allow=True,
            reasons=("permitted",),
        ),
    ]


def asks(lease_id: str, step: str, grant: str, kind: str, scope: dict, attempt: int = 1) -> Event:
    return LeaseRequested(
        lease_id=lease_id,
        step=step,
        attempt=attempt,
        grant=grant,
        grant_kind=kind,
        resource=scope["resource"],
        scope=scope,
        ttl=scope["ttl"],
    )


def gets(lease_id: str, subject: str = "") -> Event:
    return LeaseIssued(lease_id=lease_id, ttl=60, expires_at=START + timedelta(seconds=60), subject=subject)


def ends(step: str, state: StepState = StepState.SUCCEEDED, reason: str = "") -> list[Event]:
    return [
        AttemptFinished(step=step, attempt=1, state=state, reason=reason),
        StepFinished(step=step, state=state, reason=reason),
    ]


READ = [
    *begins("read", "postgres.query"),
    asks(TOKEN, "read", "step", "step-token", {"name": "step", "kind": "step-token", "resource": "wf/read", "ttl": 90}),
    gets(TOKEN),
    asks(DB, "read", "db", "database", READ_SCOPE),
    gets(DB, "orc_read-k3v9w2m7q4xa_Xy12"),
]
READ_CLOSED = [
    *ends("read"),
    LeaseRevoking(lease_id=DB, reason="step ended"),
    LeaseRevoked(lease_id=DB, confirmed_by="vault"),
    LeaseRevoking(lease_id=TOKEN, reason="step ended"),
    LeaseRevoked(lease_id=TOKEN, confirmed_by="vault"),
]
NOTIFIED = [
    *begins("notify", "slack.post_message"),
    asks(BOT, "notify", "bot", "secret", BOT_SCOPE),
    gets(BOT, "version 1"),
    *ends("notify"),
    LeaseRevoking(lease_id=BOT, reason="step ended"),
    LeaseEnded(lease_id=BOT, valid_until=None),
]
DONE = RunFinished(state=RunState.SUCCEEDED, exit_code=0)

SUCCEEDED: list[Event] = [STARTED, *READ, *READ_CLOSED, *NOTIFIED, DONE]

VAULT_SAID = "Vault refused database/creds/feedback-read: permission denied"
REFUSED: list[Event] = [
    STARTED,
    *begins("read", "postgres.query"),
    asks(DB, "read", "db", "database", READ_SCOPE),
    LeaseDenied(lease_id=DB, reason=VAULT_SAID),
    *ends("read", StepState.REFUSED, VAULT_SAID),
    StepFinished(step="notify", state=StepState.SKIPPED, reason="needs read"),
    RunFinished(state=RunState.REFUSED, exit_code=3, reason=VAULT_SAID),
]

DENIED: list[Event] = [
    STARTED,
    AttemptStarted(step="read", attempt=1, step_key="read-k3v9w2m7q4xa", action="postgres.query", timeout=30),
    Decided(
        step="read",
        attempt=1,
        engine="rego",
        revision="sha256:00",
        input_digest="sha256:11",
        allow=False,
        reasons=("SQL verb `delete` is forbidden to every agent", "grant `db` lives 3600s"),
    ),
    *ends("read", StepState.REFUSED, "the policy denied it"),
    RunFinished(state=RunState.REFUSED, exit_code=3, reason="the policy denied it"),
]

UNCONFIRMED: list[Event] = [
    STARTED,
    *READ,
    *ends("read"),
    LeaseRevoking(lease_id=DB, reason="step ended"),
    LeaseRevocationFailed(lease_id=DB, error="the database did not answer"),
    LeaseRevoking(lease_id=TOKEN, reason="step ended"),
    LeaseRevoked(lease_id=TOKEN, confirmed_by="vault"),
    *NOTIFIED,
    RunFinished(state=RunState.SUCCEEDED, exit_code=6),
]


def timed(events: list[Event]) -> Iterator[tuple[str, datetime, Event]]:
    """The events a tenth of a second apart."""
    for number, event in enumerate(events):
        yield RUN, START + timedelta(seconds=number / 10), event


class Ticking:
    """A clock that is a tenth of a second later every time it is read."""

    def __init__(self, start: datetime = START) -> None:
        self._next = start

    def now(self) -> datetime:
        moment = self._next
        self._next += timedelta(seconds=0.1)
        return moment

    def monotonic(self) -> float:
        return self._next.timestamp()
