"""Templates: escaped always, and strict about what they are given."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from orchestrator.jsontypes import JsonValue, counted
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.states import ApprovalState, RunState, StepState, TaskState
from orchestrator.presentation.terms import LEASE_MARKS, LEASE_WORDS, inputs_words, lasting, scope_or_json, took
from orchestrator.server.pages.answers import Page, address

if TYPE_CHECKING:
    from orchestrator.server.pages.sessions import Session

FOLDER = Path(__file__).parent

_LIVE, _OK, _BAD, _WARN, _QUIET = "live", "ok", "bad", "warn", "quiet"

_TONES: Mapping[str, tuple[str, str]] = {
    RunState.RUNNING: ("▶", _LIVE),
    RunState.SUCCEEDED: ("✓", _OK),
    RunState.FAILED: ("✗", _BAD),
    RunState.REFUSED: ("⊘", _BAD),
    RunState.CANCELLED: ("■", _WARN),
    RunState.INTERRUPTED: ("↯", _WARN),
    RunState.WAITING: ("◔", _WARN),
    StepState.SKIPPED: ("–", _QUIET),
    TaskState.OPEN: ("●", _LIVE),
    TaskState.CLOSED: ("○", _QUIET),
    ApprovalState.APPROVED: ("✓", _OK),
    ApprovalState.DENIED: ("✗", _BAD),
    ApprovalState.WITHDRAWN: ("–", _QUIET),
    "allowed": ("✓", _OK),
    "active": ("●", _LIVE),
    "paused": ("‖", _WARN),
    "alive": ("●", _LIVE),
    "silent": ("◔", _WARN),
    "gone": ("✗", _QUIET),
}
_LEASE_TONES: Mapping[LeaseState, str] = {
    LeaseState.REQUESTED: _LIVE,
    LeaseState.ISSUED: _LIVE,
    LeaseState.REVOKING: _WARN,
    LeaseState.REVOKED: _OK,
    LeaseState.EXPIRED: _OK,
    LeaseState.ENDED: _WARN,
    LeaseState.DENIED: _BAD,
    LeaseState.FAILED: _BAD,
}


def mark_of(state: str) -> tuple[str, str]:
    """The mark and the tone of a state, which the word beside it says, too."""
    if isinstance(state, LeaseState):
        return LEASE_MARKS[state], _LEASE_TONES[state]
    return _TONES.get(state, ("·", _QUIET))


@lru_cache(maxsize=256, typed=True)
def state_markup(state: str) -> Markup:
    """A state with its mark, in its tone. States of different kinds may be equal as texts."""
    mark, tone = mark_of(state)
    words = escape(state_words(state))
    return _made(f'<span class="state {tone}"><span aria-hidden="true">{mark}</span> {words}</span>')


def link_markup(folder: str, name: str) -> Markup:
    """A link to what has this id."""
    return _made(f'<a class="id" href="{address(folder, name)}">{escape(name)}</a>')


def _made(text: str) -> Markup:
    """What was put together here, in which every text is escaped: `Markup.format` would take most of a page's time."""
    return Markup(text)  # noqa: S704


_NO_TIME = _made('<span class="none">–</span>')


def state_words(state: str) -> str:
    """The state in words."""
    return LEASE_WORDS.get(state, state.value) if isinstance(state, LeaseState) else str(state)


def moment_words(moment: datetime) -> str:
    """`2026-03-02 12:00:05`, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def moment_markup(moment: datetime | None) -> Markup:
    """A time that machines read, too; with its fraction where somebody points at it."""
    if moment is None:
        return _NO_TIME
    exact = moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return _made(f'<time datetime="{exact}" title="{exact}">{moment_words(moment)}</time>')


def seconds_words(seconds: float) -> str:
    """A length of time."""
    return _long(seconds) if seconds >= 86400 else lasting(timedelta(seconds=seconds))


def _long(seconds: float) -> str:
    days, rest = divmod(round(seconds), 86400)
    return f"{days:,}d{rest // 3600:02}h"


def json_text(value: JsonValue) -> str:
    """A document, to be read by people."""
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)


def short(digest: str) -> str:
    """The beginning of a digest."""
    algorithm, _, value = digest.partition(":")
    return f"{algorithm}:{value[:12]}" if value else digest[:12]


@cache
def environment() -> Environment:
    """The templates. Only `Markup` that our own code has made is not escaped."""
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters.update(
        moment=moment_markup, seconds=seconds_words, json_text=json_text, short=short, scope=scope_or_json
    )
    made.filters["inputs"] = inputs_words
    made.globals.update(
        state=state_markup,
        run_link=partial(link_markup, "runs"),
        lease_link=partial(link_markup, "leases"),
        address=address,
        took=took,
        counted=counted,
        lasting=lasting,
    )
    return made


def rendered(page: Page, session: Session | None = None) -> str:
    """The whole text of a page, for whoever has logged in."""
    return environment().get_template(page.template).render({"session": session, **page.values})


def prepare() -> None:
    """Read all templates, which takes longer than any page: nobody who asks for one is to wait for that.

    Nor for a look through all that the process has by now, which it keeps, for garbage.
    """
    for name in environment().list_templates():
        environment().get_template(name)
    gc.collect()
    gc.freeze()
