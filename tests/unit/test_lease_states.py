"""The life of a lease: what may follow what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import IllegalTransition
from orchestrator.ledger.lease import FINAL, OPEN, TRANSITIONS, LeaseState, check_transition


def test_a_lease_begins_with_its_request_and_with_nothing_else() -> None:
    check_transition("l", None, LeaseState.REQUESTED)
    for state in set(LeaseState) - {LeaseState.REQUESTED}:
        with pytest.raises(IllegalTransition):
            check_transition("l", None, state)


def test_what_was_issued_can_only_end_by_being_revoked() -> None:
    assert TRANSITIONS[LeaseState.ISSUED] == {LeaseState.ISSUED, LeaseState.REVOKING}


@given(st.sampled_from(sorted(FINAL)), st.sampled_from(list(LeaseState)))
def test_nothing_follows_a_final_state(final: LeaseState, following: LeaseState) -> None:
    with pytest.raises(IllegalTransition):
        check_transition("l", final, following)


@given(st.sampled_from(sorted(OPEN)))
def test_every_open_state_can_reach_a_final_one(state: LeaseState) -> None:
    reached, frontier = {state}, {state}
    while frontier:
        frontier = {after for before in frontier for after in TRANSITIONS[before]} - reached
        reached |= frontier
    assert reached & FINAL
