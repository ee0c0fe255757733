"""Whatever a grant declares and whatever is inferred: the file says the latter, and the rest of it is untouched."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.actions.catalog import catalog
from orchestrator.grants.models import DatabaseGrant
from orchestrator.grants.privileges import ALL_COLUMNS, COLUMN_VERBS, TABLE_VERBS, Privilege, merge
from orchestrator.inference import yaml_text
from orchestrator.inference.comparison import difference
from orchestrator.inference.live import Inferred
from orchestrator.inference.rewrite import rewritten
from orchestrator.inference.workflows import StepNeeds
from orchestrator.workflow.loader import load_text

names = st.sampled_from(["id", "name", "true", "größe", "a b", "it's", "#", "Select"]) | st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), min_size=1, max_size=6
).filter(lambda text: "${{" not in text and text != "*")


@st.composite
def privileges(draw: st.DrawFn) -> Privilege:
    verb = draw(st.sampled_from(TABLE_VERBS))
    columns: tuple[str, ...] = ()
    if verb in COLUMN_VERBS:
        columns = ALL_COLUMNS if draw(st.booleans()) else tuple(sorted(draw(st.sets(names, min_size=1, max_size=4))))
    return Privilege(verb, "shop", draw(st.sampled_from(["a", "b", "c"])), columns)


grants = st.lists(privileges(), min_size=1, max_size=5)
BEFORE = "version: 1  # one\nname: 'small'\n\nagent: tester\nsteps:\n  # first\n  work:\n    action: postgres.query\n"
AFTER = "    with: { sql: x,  grant: db } # the SQL\n\n  other: { action: postgres.query, with: {sql: y} }\n# end"


def written_as(lines: list[Privilege], *, block: bool, comments: bool) -> str:
    if not block:
        return (
            f"    grants: {{db: {{ kind: database, connection: c, privileges: {yaml_text.flow(lines)}}} }}   # here\n"
        )
    text = "    grants:\n      db:\n        kind: database\n        connection: c\n        privileges:\n"
    for privilege in lines:
        text += "".join(
            f"{'        # about it' + chr(10) if comments else ''}          {line}{'  # why' if comments else ''}\n"
            for line in yaml_text.lines([privilege])
        )
    return text + "      # below\n"


@given(declared=grants, inferred=grants, block=st.booleans(), comments=st.booleans())
def test_the_file_says_what_is_inferred_and_everything_else_stays(
    declared: list[Privilege], inferred: list[Privilege], block: bool, comments: bool
) -> None:
    text = BEFORE + written_as(declared, block=block, comments=comments) + AFTER
    loaded = load_text(text, filename="w.yaml", actions=catalog)
    found = difference(declared, Inferred(merge(inferred)))
    need = StepNeeds(
        step="work", action="postgres.query", connection="c", grant="db", declared=tuple(declared), found=found
    )
    result = rewritten(text, loaded, [need], actions=catalog)
    assert result.text.startswith(BEFORE)
    assert result.text.endswith(AFTER)
    assert result.text.count("# below") == text.count("# below")
    assert result.text.count("# here") == text.count("# here")
    grant = result.workflow.steps["work"].grants["db"]
    assert isinstance(grant, DatabaseGrant)
    assert merge(each.privilege() for each in grant.privileges) == merge(inferred)
    again = difference([each.privilege() for each in grant.privileges], Inferred(merge(inferred)))
    assert not again
    if not found:
        assert result.text == text
