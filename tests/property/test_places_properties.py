"""Whatever is held and whoever waits: the rule never gives too much away, lets nobody overtake, and starves nobody."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger.places import Claim, granted

NAMES = ("a", "b", "c")
LIMITS = st.fixed_dictionaries(dict.fromkeys(NAMES, st.integers(1, 4)))
HELD = st.fixed_dictionaries(dict.fromkeys(NAMES, st.integers(0, 5)))
CLAIMS = st.builds(Claim, st.dictionaries(st.sampled_from(NAMES), st.integers(1, 3), min_size=1), st.booleans())
LINES = st.lists(CLAIMS, max_size=12)


@given(HELD, LIMITS, LINES)
def test_what_is_given_away_never_exceeds_a_limit(
    held: dict[str, int], limits: dict[str, int], line: list[Claim]
) -> None:
    total = Counter(held)
    for claim, goes in zip(line, granted(held, limits, line), strict=True):
        if goes:
            total.update(claim.leases)
            assert all(total[name] <= limits[name] for name in claim.leases)


@given(HELD, LIMITS, LINES)
def test_who_waits_for_one_connection_alone_is_overtaken_there_by_nobody(
    held: dict[str, int], limits: dict[str, int], line: list[Claim]
) -> None:
    going = granted(held, limits, line)
    for place, claim in enumerate(line):
        if not going[place] and len(claim.leases) == 1:
            (name,) = claim.leases
            behind = zip(line[place + 1 :], going[place + 1 :], strict=True)
            assert not any(goes for other, goes in behind if name in other.leases)


@given(HELD, LIMITS, LINES, LINES)
def test_who_comes_later_changes_nothing_for_those_ahead(
    held: dict[str, int], limits: dict[str, int], line: list[Claim], later: list[Claim]
) -> None:
    assert granted(held, limits, [*line, *later])[: len(line)] == granted(held, limits, line)


@given(LIMITS, st.lists(CLAIMS, min_size=1, max_size=6), st.lists(st.sampled_from(NAMES), min_size=1, max_size=40))
def test_a_kept_claim_comes_to_its_places_under_a_stream_of_newcomers(
    limits: dict[str, int], line: list[Claim], stream: list[str]
) -> None:
    """Each turn one lease ends and newcomers for every connection have come: after as many turns as leases are open,
    whoever is first in line has its places."""
    wanted = Claim(dict.fromkeys(limits, 1), kept=True)
    held = Counter(limits)
    for _ in range(sum(limits.values())):
        name = next((each for each in NAMES if held[each] and held[each] >= limits[each]), None)
        if name is None:
            break
        held[name] -= 1
        newcomers = [Claim({each: 1}) for each in stream]
        going = granted(held, limits, [wanted, *newcomers])
        if going[0]:
            return
        for newcomer, goes in zip(newcomers, going[1:], strict=True):
            if goes:
                held.update(newcomer.leases)
    assert granted(held, limits, [wanted])[0]
