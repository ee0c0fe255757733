"""What a login holds beside what was declared for it: pure set arithmetic over holdings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from orchestrator.grants.privileges import ALL_COLUMNS, Privilege, bound_limits, qualified
from orchestrator.proof.holdings import PUBLIC, Holding


@dataclass(frozen=True, slots=True)
class Excess:
    """A privilege that is held and was not declared. `tolerated` because the caller said so."""

    holding: Holding
    via: str
    tolerated: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """The three parts of the answer. Only an empty `missing` and no untolerated `excess` is a proof."""

    held: tuple[Holding, ...]
    missing: tuple[Holding, ...]
    excess: tuple[Excess, ...]

    @property
    def exact(self) -> bool:
        """Whether nothing declared is missing, and nothing is there but what every login has."""
        return not self.missing and all(each.tolerated for each in self.excess)


def expected(
    privileges: Sequence[Privilege],
    *,
    scope_role: str,
    database: str,
    signatures: Mapping[str, str],
    quote: Callable[[str], str],
) -> set[Holding]:
    """What a login of a compiled grant must hold: what is declared, and the way to it.

    `signatures` are those of functions as the server writes them, by their declared text. `quote` writes a name as
    the server does, which alone knows its reserved words.
    """
    found = {
        Holding("role", quote(scope_role), "INHERIT"),
        Holding("database", quote(database), "CONNECT"),
        Holding("function", "orchestrator.everyone(relation oid)", "EXECUTE"),  # as everybody; see EVERYONE
    }
    if bound_limits(privileges):
        found.add(Holding("function", "orchestrator.bound(wanted integer)", "EXECUTE"))
    for each in privileges:
        found.add(Holding("schema", quote(each.schema), "USAGE"))
        if each.verb == "schema":
            continue
        name = f"{quote(each.schema)}.{quote(each.name)}"
        if each.verb == "execute":
            function = qualified(each.schema, each.name, function=True)
            found.add(Holding("function", signatures.get(function, function), "EXECUTE"))
        elif each.verb == "usage":
            found.add(Holding("sequence", name, "USAGE"))
        elif each.columns in ((), ALL_COLUMNS):
            found.add(Holding("table", name, each.verb.upper()))
        else:
            found |= {Holding("column", f"{name}.{quote(column)}", each.verb.upper()) for column in each.columns}
    return found


def compare(held: Mapping[Holding, str], declared: Iterable[Holding], *, tolerate: Sequence[str] = ()) -> Comparison:
    """Hold the two sides against each other.

    `tolerate` are patterns (`*` matches anything) over `EXECUTE on function public.f()` that may be held through
    PUBLIC. Nothing else is ever tolerated.
    """
    wanted = set(declared)
    excess = [
        Excess(holding, via, via == PUBLIC and any(fnmatchcase(str(holding), pattern) for pattern in tolerate))
        for holding, via in sorted(held.items())
        if holding not in wanted
    ]
    return Comparison(
        held=tuple(sorted(wanted & set(held))), missing=tuple(sorted(wanted - set(held))), excess=tuple(excess)
    )
