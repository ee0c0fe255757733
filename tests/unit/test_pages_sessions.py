"""How long somebody stays logged in, by a clock that is set by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from orchestrator.approvals.people import Person
from orchestrator.server.pages import sessions
from orchestrator.server.pages.sessions import IDLE_SECONDS, LONGEST_SECONDS, Role, Session, Sessions

WHO = Person("vault:ann")


@pytest.fixture
def clock() -> SimpleNamespace:
    time = SimpleNamespace(at=1000.0)
    time.monotonic = lambda: time.at
    return time


@pytest.fixture
def known(clock: SimpleNamespace) -> Sessions:
    return Sessions(clock)  # type: ignore[arg-type]  # nothing else is asked of it


def begun(known: Sessions, seconds: float = LONGEST_SECONDS) -> str:
    return known.begin(WHO, "ann", frozenset({Role.READER}), seconds=seconds)


def session(known: Sessions, cookie: str) -> Session | None:
    return known.of(cookie)


def test_a_session_is_over_when_nobody_used_it(known: Sessions, clock: SimpleNamespace) -> None:
    cookie = begun(known)
    for _ in range(3):
        clock.at += IDLE_SECONDS - 1
        assert session(known, cookie) is not None
    clock.at += IDLE_SECONDS
    assert session(known, cookie) is None


def test_a_session_is_over_after_its_time_however_much_it_is_used(known: Sessions, clock: SimpleNamespace) -> None:
    short, long = begun(known, 100), begun(known, 10 * LONGEST_SECONDS)
    clock.at += 99
    assert session(known, short) is not None
    clock.at += 1
    assert session(known, short) is None
    for _ in range(int(LONGEST_SECONDS // (IDLE_SECONDS / 2)) - 1):
        clock.at += IDLE_SECONDS / 2
        assert session(known, long) is not None
    clock.at += IDLE_SECONDS / 2
    assert session(known, long) is None


def test_the_one_that_was_idle_longest_makes_room(
    known: Sessions, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MOST_SESSIONS", 3)
    cookies = []
    for _ in range(3):
        cookies.append(begun(known))
        clock.at += 1
    assert session(known, cookies[0]) is not None
    cookies.append(begun(known))
    assert [session(known, each) is not None for each in cookies] == [True, False, True, True]


def test_a_cookie_that_was_never_given_out_is_nobodys(known: Sessions) -> None:
    cookie = begun(known)
    assert [session(known, each) for each in ("", cookie[:-1], cookie + "x", "\xff")] == [None] * 4
    assert cookie not in repr(known)
    assert session(known, cookie) is not None
    known.end(cookie)
    assert session(known, cookie) is None


def test_what_goes_on_by_itself_is_no_use_of_a_session(known: Sessions, clock: SimpleNamespace) -> None:
    cookies = [begun(known), begun(known)]
    idle, ended = (session(known, each) for each in cookies)
    assert idle is not None
    assert ended is not None
    for _ in range(2):
        assert known.lasts(idle)
        assert known.lasts(ended)
        clock.at += IDLE_SECONDS / 2 - 1
    known.end(cookies[1])
    assert not known.lasts(ended)
    assert known.lasts(idle)
    clock.at += 2
    assert not known.lasts(idle)
