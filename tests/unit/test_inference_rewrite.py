"""Writing inferred privileges into a workflow: only what changes is touched, and what cannot be done is refused."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

from orchestrator.actions.catalog import catalog
from orchestrator.errors import UsageError
from orchestrator.grants.models import DatabaseGrant
from orchestrator.grants.privileges import ALL_COLUMNS, Bound, Privilege, RowLimit
from orchestrator.inference.comparison import difference
from orchestrator.inference.live import Inferred
from orchestrator.inference.replacing import replace_text
from orchestrator.inference.rewrite import rewritten, to_write
from orchestrator.inference.workflows import StepNeeds
from orchestrator.workflow.loader import load_text

COMMENTED = """\
# yaml-language-server: $schema=schema.json
version:  1          # two blanks, on purpose
name: 'commented'

agent: "tester"
inputs: { limit: { type: integer,default: 10 } }   # crowded

steps:

  # What this is about.
  read:
    action: postgres.query   # reads
    grants:
      # The one login.
      db:
        kind: database
        connection: support  # where
        privileges:
        # Who they are.
        - select: shop.customer    # the table
          columns: [ id,  "name" ] # no more
          where: { id: "${{ inputs.limit }}" }

        # What they bought.
        - { select: shop.orders, columns: [total] }  # in one line

        # Written out.
        - update: shop.orders
          columns:
          # the key
          - id
          - note   # free text
        # The end of the grant.
    with:
      sql: >-
        SELECT id
          FROM shop.customer
      parameters: {limit: "${{ inputs.limit }}"}


  write: {action: postgres.execute, with: {sql: "DELETE FROM shop.log"}, grants: {db: {kind: database,
    connection: support, role: by-hand, ttl: 2m}}}
# the end
"""

CUSTOMER = Privilege("select", "shop", "customer", ("id", "name"))
ORDERS = Privilege("select", "shop", "orders", ("total",))
NOTES = Privilege("update", "shop", "orders", ("id", "note"))


def needs_of(text: str, step: str, inferred: Sequence[Privilege], *notes: str) -> StepNeeds:
    declared = load_text(text, filename="w.yaml", actions=catalog).workflow.parts[step]
    grant = declared.grants.get("db")
    lines = tuple(each.privilege() for each in grant.privileges) if isinstance(grant, DatabaseGrant) else ()
    return StepNeeds(
        step=step,
        action=declared.action,
        connection="support",
        grant="db",
        declared=lines,
        role=grant.role if isinstance(grant, DatabaseGrant) else None,
        added=grant is None,
        found=difference(lines, Inferred(tuple(inferred), notes)),
    )


def written(text: str, step: str, *inferred: Privilege) -> str:
    loaded = load_text(text, filename="w.yaml", actions=catalog)
    return rewritten(loaded, [needs_of(text, step, inferred)], actions=catalog).text


def changed(before: str, after: str) -> tuple[list[str], list[str]]:
    """The lines that are gone, and those that are new."""
    old, new = before.splitlines(), after.splitlines()
    return [line for line in old if line not in new], [line for line in new if line not in old]


def test_what_is_right_already_is_left_byte_for_byte() -> None:
    assert written(COMMENTED, "read", CUSTOMER, ORDERS, NOTES) == COMMENTED


def test_a_column_more_changes_one_line_and_keeps_its_comment_and_quotes() -> None:
    after = written(COMMENTED, "read", replace(CUSTOMER, columns=("city", "id", "name")), ORDERS, NOTES)
    assert changed(COMMENTED, after) == (
        ['          columns: [ id,  "name" ] # no more'],
        ['          columns: [ id,  "name", city ] # no more'],
    )


def test_a_column_less_in_a_list_of_lines_takes_out_that_line_only() -> None:
    after = written(COMMENTED, "read", CUSTOMER, ORDERS, replace(NOTES, columns=("note",)))
    assert after == COMMENTED.replace("          - id\n", "")


def test_a_column_more_in_a_list_of_lines_is_a_line_at_its_end() -> None:
    after = written(COMMENTED, "read", CUSTOMER, ORDERS, replace(NOTES, columns=("id", "note", "placed")))
    assert after == COMMENTED.replace("# free text\n", "# free text\n          - placed\n")


def test_a_privilege_less_takes_out_its_lines_only_and_the_comments_on_them_get_a_line() -> None:
    after = written(COMMENTED, "read", CUSTOMER, NOTES)
    assert after == COMMENTED.replace(
        "        - { select: shop.orders, columns: [total] }  # in one line\n", "        # in one line\n"
    )
    after = written(COMMENTED, "read", ORDERS, NOTES)
    assert changed(COMMENTED, after)[1] == ["        # the table", "        # no more"]
    assert "        # Who they are.\n        # the table\n        # no more\n\n        # What they bought.\n" in after
    after = written(COMMENTED, "read", CUSTOMER, ORDERS)
    assert after == COMMENTED.replace(
        "        - update: shop.orders\n          columns:\n          # the key\n          - id\n"
        "          - note   # free text\n",
        "        # the key\n        # free text\n",
    )


def test_a_privilege_more_is_added_at_the_end_of_the_list() -> None:
    new = Privilege("insert", "shop", "log", ("what",))
    after = written(COMMENTED, "read", CUSTOMER, ORDERS, NOTES, new)
    added = "        - insert: shop.log\n          columns: [what]\n"
    assert after == COMMENTED.replace("# free text\n", "# free text\n" + added)


def test_row_limits_are_kept_whatever_the_columns_become() -> None:
    after = written(COMMENTED, "read", replace(CUSTOMER, columns=("city",)), ORDERS, NOTES)
    assert '          columns: [ city ] # no more\n          where: { id: "${{ inputs.limit }}" }\n' in after


def test_a_new_verb_on_a_table_with_row_limits_is_asked_about_and_never_written_without_them() -> None:
    need = needs_of(COMMENTED, "read", [CUSTOMER, ORDERS, NOTES, Privilege("delete", "shop", "customer")])
    assert need.found.notes == (
        "the rows of shop.customer are limited for `select`: declare `delete` with the rows that it is for",
    )
    with pytest.raises(UsageError, match=r"step `read`.*rows of shop.customer are limited"):
        to_write([need], replace_roles=False)


def test_a_step_of_which_not_everything_is_known_is_refused_by_name_and_left_where_nothing_is_missing() -> None:
    with pytest.raises(UsageError, match="step `read`: DO runs code"):
        to_write(
            [needs_of(COMMENTED, "read", [replace(ORDERS, columns=("note",))], "DO runs code")], replace_roles=True
        )
    assert to_write([needs_of(COMMENTED, "read", [ORDERS], "DO runs code")], replace_roles=True) == []


def test_a_role_is_replaced_only_where_that_is_allowed() -> None:
    need = needs_of(COMMENTED, "write", [Privilege("delete", "shop", "log")])
    assert to_write([need], replace_roles=False) == []
    assert to_write([need], replace_roles=True) == [need]
    after = written(COMMENTED, "write", Privilege("delete", "shop", "log"))
    assert after == COMMENTED.replace("role: by-hand", "privileges: [{ delete: shop.log }]")


def test_a_role_in_a_block_is_replaced_by_lines_and_keeps_its_comment() -> None:
    text = HEAD + BLOCK.replace("GRANTS", "    grants:\n      db:\n        role: x  # by hand\n        kind: database\n"
                                "        connection: support\n")  # fmt: skip
    assert written(text, "work", ORDERS) == text.replace(
        "role: x  # by hand\n",
        "privileges:  # by hand\n          - select: shop.orders\n            columns: [total]\n",
    )


HEAD = "version: 1\nname: small\nagent: tester\nsteps:\n"
BLOCK = "  work:\n    action: postgres.query  # why\nGRANTS    with: { sql: SELECT total FROM shop.orders }\n"
GRANT = (
    "      db:\n        kind: database\n        connection: support\n        privileges:\n"
    "          - select: shop.orders\n            columns: [total]\n"
)
IN_LINE = "db: { kind: database, connection: support, privileges: [{ select: shop.orders, columns: [total] }] }"


def test_a_step_without_grants_gets_one_after_its_action() -> None:
    text = HEAD + BLOCK.replace("GRANTS", "")
    assert written(text, "work", ORDERS) == HEAD + BLOCK.replace("GRANTS", "    grants:\n" + GRANT)


def test_a_step_with_other_grants_gets_one_more() -> None:
    other = "    grants:\n      api: { kind: secret, path: a/b, keys: [c] }  # other\n"
    text = HEAD + BLOCK.replace("GRANTS", other)
    assert written(text, "work", ORDERS) == HEAD + BLOCK.replace("GRANTS", other + GRANT)


def test_a_step_in_one_line_gets_its_grant_in_that_line() -> None:
    text = HEAD + "  work: { action: postgres.query, with: { sql: SELECT total FROM shop.orders } }\n"
    assert written(text, "work", ORDERS) == text.replace("query,", f"query, grants: {{ {IN_LINE} }},")
    text = HEAD + "  work: { action: postgres.query, grants: {}, with: { sql: SELECT total FROM shop.orders } }\n"
    assert written(text, "work", ORDERS) == text.replace("{}", f"{{ {IN_LINE} }}")
    text = HEAD + "  work: { action: postgres.query, grants: { api: { kind: dynamic, path: a } }, with: { sql: x } }\n"
    assert written(text, "work", ORDERS) == text.replace("path: a }", f"path: a }}, {IN_LINE}")


def in_list(privileges: str) -> str:
    grant = f"    grants:\n      db: {{ kind: database, connection: support, privileges: {privileges} }}\n"
    return HEAD + BLOCK.replace("GRANTS", grant)


def test_a_list_in_one_line_stays_in_one_line() -> None:
    before = "[{ select: shop.orders, columns: [ 'id' ] }, { delete: shop.log }]"
    after = "[{ select: shop.orders, columns: [ 'id', total ] }, { usage: shop.ticket }]"
    wanted = (Privilege("select", "shop", "orders", ("id", "total")), Privilege("usage", "shop", "ticket"))
    assert written(in_list(before), "work", *wanted) == in_list(after)


def test_all_columns_become_the_named_ones_and_back() -> None:
    every, named = "[{ select: shop.orders, columns: all }]", "[{ select: shop.orders, columns: [total] }]"
    assert written(in_list(every), "work", ORDERS) == in_list(named)
    assert written(in_list(named), "work", replace(ORDERS, columns=ALL_COLUMNS)) == in_list(every)
    lines = HEAD + BLOCK.replace("GRANTS", "    grants:\n" + GRANT.replace("[total]", "\n              - total"))
    after = written(lines, "work", replace(ORDERS, columns=ALL_COLUMNS))
    assert after == HEAD + BLOCK.replace("GRANTS", "    grants:\n" + GRANT.replace("[total]", "all"))


def test_a_privilege_that_is_declared_in_two_lines_becomes_one_where_it_changes() -> None:
    before = "[{ select: shop.orders, columns: [id] }, { select: shop.orders, columns: [note] }]"
    both = Privilege("select", "shop", "orders", ("id", "note"))
    assert written(in_list(before), "work", both) == in_list(before)
    assert written(in_list(before), "work", ORDERS) == in_list("[{ select: shop.orders, columns: [total] }]")


def test_line_ends_and_a_missing_last_one_stay_as_they_are() -> None:
    text = HEAD + "  work:\n    with: { sql: SELECT total FROM shop.orders }\n    action: postgres.query"
    after = written(text, "work", ORDERS)
    assert after == text + "\n    grants:\n" + GRANT.removesuffix("\n")
    text = HEAD + "  work:\n    with: { sql: x }\n    action: postgres.query\n    grants:\n" + GRANT
    last = f"{text}          - delete: shop.log # why"
    assert written(last, "work", ORDERS) == f"{text}          # why"
    assert written(last, "work", CUSTOMER, ORDERS) == (
        f"{text}          # why\n          - select: shop.customer\n            columns: [id, name]"
    )
    assert written(last.removesuffix(" # why"), "work", ORDERS) == text
    windows = COMMENTED.replace("\n", "\r\n")
    more = written(windows, "read", CUSTOMER, ORDERS, NOTES, Privilege("delete", "shop", "log"))
    assert more == windows.replace("# free text\r\n", "# free text\r\n        - delete: shop.log\r\n")


HOSTILE = [
    *("true", "1st", "größe", "a: b", "#x", "- x", "it's", 'say "x"', "{a}", "[a]", "a, b", "*a", "&a", "!a", "%a"),
    *("@a", "`a`", " ", "null", "~", "Select", "two\nlines", "tab\t", "\x7f", "\u2028", "\U0001f600", "a\\b"),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_of_a_database_is_written_so_that_it_is_read_as_the_same(name: str) -> None:
    wanted = (Privilege("delete", name, "t"), Privilege("select", name, name, tuple(sorted((name, "z")))))
    for text in (in_list("[{ delete: shop.log }]"), HEAD + BLOCK.replace("GRANTS", "")):
        after = load_text(written(text, "work", *wanted), filename="w.yaml", actions=catalog)
        grant = after.workflow.steps["work"].grants["db"]
        assert isinstance(grant, DatabaseGrant)
        assert {each.privilege() for each in grant.privileges} == set(wanted)


def test_a_name_that_looks_like_an_expression_is_refused() -> None:
    with pytest.raises(UsageError, match="would not be a valid workflow; nothing was written"):
        written(in_list("[{ delete: shop.log }]"), "work", Privilege("select", "shop", "${{ inputs.x }}", ("a",)))


ALIASED = [
    in_list("&p [{ delete: shop.log }]"),
    in_list("[&i { delete: shop.log }]"),
    in_list("[{ delete: shop.log }]").replace("db: {", "db: &g {"),
    in_list("[{ delete: shop.log }]").replace("work:\n", "work: &w\n"),
    HEAD + "  first: &w\n    action: postgres.query\n    with: { sql: x }\n  work: *w\n",
]


@pytest.mark.parametrize("text", ALIASED)
def test_what_is_written_with_anchors_or_aliases_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="step `work` is written with a YAML anchor or alias"):
        written(text, "work", ORDERS)


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (("default: 10", "default: 11"), "would say something else beside the privileges"),
        (
            ("          - note   # free text\n", "          - note\n          - total\n"),
            "would not be what was inferred",
        ),
    ],
)
def test_a_file_that_changed_since_it_was_analysed_is_refused(theirs: tuple[str, str], reason: str) -> None:
    loaded = load_text(COMMENTED, filename="w.yaml", actions=catalog)
    need = needs_of(COMMENTED, "read", [replace(CUSTOMER, columns=("id",)), ORDERS, NOTES])
    assert theirs[0] in COMMENTED
    with pytest.raises(UsageError, match=reason):
        rewritten(replace(loaded, text=COMMENTED.replace(*theirs)), [need], actions=catalog)


BETWEEN = [
    (
        "[\n        { delete: shop.log }, # why\n        { select: shop.orders, columns: [total] } ]",
        "[\n          # why\n        { select: shop.orders, columns: [total] } ]",
    ),
    (
        "[{ select: shop.orders, columns: [total] }, # it\n        { delete: shop.log } # why\n        ]",
        "[{ select: shop.orders, columns: [total] }  # it\n         # why\n        ]",
    ),
    (
        "[ # all\n        { delete: shop.log }, # why\n        { usage: shop.ticket } # what\n        ]",
        "[ # all\n        { select: shop.orders, columns: [total] }  # why\n         # what\n        ]",
    ),
    (
        "[{ select: shop.orders, columns: all, # why\n        }]",
        "[{ select: shop.orders, columns: [total], # why\n        }]",
    ),
]


@pytest.mark.parametrize(("before", "after"), BETWEEN)
def test_comments_within_brackets_stay_whatever_goes(before: str, after: str) -> None:
    assert written(in_list(before), "work", ORDERS) == in_list(after)


def test_a_list_within_brackets_with_an_item_a_line_gets_a_line_for_each_new_one() -> None:
    for comma in ("", ","):
        before = f"[\n        {{ delete: shop.log }}{comma} # why\n        # end\n      ]"
        after = (
            "[\n        { delete: shop.log }, # why\n        { select: shop.orders, columns: [total] }"
            f"{comma}\n        # end\n      ]"
        )
        assert written(in_list(before), "work", ORDERS, Privilege("delete", "shop", "log")) == in_list(after)


def test_a_block_that_becomes_one_line_keeps_its_comments() -> None:
    lines = GRANT.replace("columns: [total]", "columns:   # which\n              # a\n              - total # b")
    text = HEAD + BLOCK.replace("GRANTS", "    grants:\n" + lines)
    after = written(text, "work", replace(ORDERS, columns=ALL_COLUMNS))
    assert "            columns: all  # which\n              # a\n               # b\n    with:" in after


def test_a_limit_that_only_looks_like_a_comment_is_none() -> None:
    text = in_list("[{ delete: shop.log, where: { what: '# x' } }, { select: shop.orders, columns: ['#'] }]")
    after = written(text, "work", ORDERS)
    assert after == in_list("[{ select: shop.orders, columns: [total] }]")


def test_the_wanted_grant_carries_bound_and_constant_limits() -> None:
    declared = [replace(ORDERS, where=(RowLimit("id", Bound("${{ inputs.x }}")), RowLimit("open", True)))]
    found = difference(declared, Inferred((replace(ORDERS, columns=("id",)),)))
    assert found.wanted == (replace(declared[0], columns=("id",)),)
    assert found.missing == (replace(declared[0], columns=("id",)),)
    assert found.superfluous == (declared[0],)


def test_replacing_keeps_the_mode_and_a_symbolic_link_and_leaves_nothing_beside(tmp_path: Path) -> None:
    file, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    file.write_text("before\r\n", newline="")
    file.chmod(0o640)
    link.symlink_to(file)
    replace_text(link, "before\r\n", "after\r\n")
    assert file.read_bytes() == b"after\r\n"
    assert file.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link.yaml", "real.yaml"]


def test_a_file_that_somebody_changed_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text("theirs")
    with pytest.raises(UsageError, match="changed by somebody else"):
        replace_text(file, "ours", "new")
    assert file.read_text() == "theirs"


def test_a_file_in_whose_place_is_another_one_with_the_same_text_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = tmp_path / "w.yaml", tmp_path / "other"
    file.write_text("before")
    other.write_text("before")
    lock = fcntl.flock

    def replaced_just_before(descriptor: IO[bytes], how: int) -> None:
        os.replace(other, file)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", replaced_just_before)
    with pytest.raises(UsageError, match="changed by somebody else"):
        replace_text(file, "before", "after")
    assert file.read_text() == "before"


def test_a_file_that_cannot_be_written_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "w.yaml"
    file.write_text("before")

    def refuse(source: str, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UsageError, match="cannot be written: Permission denied"):
        replace_text(file, "before", "after")
    assert file.read_text() == "before"
    assert os.listdir(tmp_path) == ["w.yaml"]


TOOL = """\
version: 1
name: t
tools:
  read:   # for the agent
    description: Read.
    call: { id: { type: integer } }
    action: postgres.query
    grants: { db: { kind: database, connection: support, privileges: [ { select: shop.customer, columns: [id] } ] } }
    with: { sql: "SELECT id, name FROM shop.customer WHERE id = %(id)s", parameters: { id: "${{ call.id }}" } }
    outputs: [rows]
"""


def test_a_tool_is_written_to_as_a_step_is() -> None:
    after = written(TOOL, "read", replace(CUSTOMER, columns=("id", "name")))
    assert after == TOOL.replace("columns: [id]", "columns: [id, name]")
    without = TOOL.replace(TOOL[TOOL.index("    grants") : TOOL.index("    with")], "")
    assert "      db:\n        kind: database" in written(without, "read", replace(CUSTOMER, columns=("id", "name")))


MORE = (CUSTOMER, ORDERS, NOTES, Privilege("delete", "shop", "log"))


def test_a_new_line_ends_as_the_line_before_it_does() -> None:
    for end in ("\r", "\r\n"):
        alone = COMMENTED.replace("\n", end)
        assert written(alone, "read", *MORE) == written(COMMENTED, "read", *MORE).replace("\n", end)
        assert written(alone, "read", ORDERS) == written(COMMENTED, "read", ORDERS).replace("\n", end)
        one = COMMENTED.replace("# one login.\n", f"# one login.{end}")
        assert written(one, "read", *MORE) == one.replace("# free text\n", "# free text\n        - delete: shop.log\n")
        one = COMMENTED.replace("# free text\n", f"# free text{end}")
        assert written(one, "read", *MORE) == one.replace(
            f"# free text{end}", f"# free text{end}        - delete: shop.log{end}"
        )


@pytest.mark.parametrize("separator", ["\x85", "\u2028", "\u2029"])
def test_a_line_separator_may_be_in_a_text_and_beside_texts_the_file_is_refused(separator: str) -> None:
    inside = COMMENTED.replace("DELETE FROM shop.log", f"DELETE FROM shop.log -- {separator} --")
    assert inside != COMMENTED
    added = "# free text\n        - delete: shop.log\n"
    assert written(inside, "read", *MORE) == inside.replace("# free text\n", added)
    beside = COMMENTED.replace("# Who they are.", f"# Who they are. {separator}")
    with pytest.raises(UsageError, match=r"line separator.*beside its texts"):
        written(beside, "read", *MORE)


ODD_PLACES = {
    "an explicit key": ("        privileges:\n", "        ? privileges\n        :\n"),
    "a tag in front of the list": ("        privileges:\n", "        privileges: !!seq # all\n"),
    "a quoted key": ("        privileges:\n", '        "privileges"  :\n'),
    "an item that begins below its dash": (
        "- select: shop.orders\n  ",
        "- # which\n\n            !!map\n            select: shop.orders\n  ",
    ),
    "columns as block scalars": (
        "columns: [total]",
        "columns:\n              - |-  # the sum\n                total\n\n",
    ),
    "no blank before the list": (
        "          - select: shop.orders\n            columns",
        "        - select: shop.orders\n          columns",
    ),
}


@pytest.mark.parametrize("case", ODD_PLACES)
def test_lists_in_odd_but_right_yaml_are_changed_where_they_stand(case: str) -> None:
    before, after = ODD_PLACES[case]
    assert before in GRANT
    text = HEAD + BLOCK.replace("GRANTS", "    grants:\n" + GRANT.replace(before, after))
    for wanted in (
        (replace(ORDERS, columns=("id", "total")),),
        (replace(ORDERS, columns=("id",)),),
        (replace(ORDERS, columns=ALL_COLUMNS),),
        (ORDERS, CUSTOMER),
        (CUSTOMER,),
    ):
        result = load_text(written(text, "work", *wanted), filename="w.yaml", actions=catalog)
        grant = result.workflow.steps["work"].grants["db"]
        assert isinstance(grant, DatabaseGrant)
        assert {each.privilege() for each in grant.privileges} == set(wanted)
        for comment in ("# all", "# which", "# the sum"):
            assert (comment in text) == (comment in result.text)


def test_an_item_that_goes_from_the_line_of_its_key_is_refused() -> None:
    text = HEAD + BLOCK.replace("GRANTS", "    grants:\n" + GRANT).replace(
        "        privileges:\n          - select", "        ? privileges\n        : - select"
    )
    with pytest.raises(UsageError, match="something before the dash of an item that goes"):
        written(text, "work", CUSTOMER)
    assert "- delete: shop.log" in written(text, "work", ORDERS, Privilege("delete", "shop", "log"))


IN_JSON = """{
  "version": 1, "name": "small", "agent": "tester",
  "steps": {
    "read": {
      "action": "postgres.query",
      "grants": {
        "db": {
          "kind": "database",
          "connection": "support",
          "privileges": [
            {
              "select": "shop.orders",
              "columns": [
                "id",
                "note"
              ]
            },
            { "delete": "shop.log" }
          ]
        }
      },
      "with": { "sql": "SELECT id FROM shop.orders" }
    }
  }
}
"""


def test_a_workflow_in_json_is_json_afterwards_and_laid_out_as_before() -> None:
    wanted = (replace(ORDERS, columns=("id", "note", "total")), Privilege("usage", "shop", 'The "T"'))
    after = written(IN_JSON, "read", *wanted)
    assert json.loads(after)["steps"]["read"]["grants"]["db"]["privileges"] == [each.as_json() for each in wanted]
    assert after == IN_JSON.replace('"note"\n', '"note",\n                "total"\n').replace(
        '{ "delete": "shop.log" }', '{ "usage": "shop.\\"The \\"\\"T\\"\\"\\"" }'
    )
    without = IN_JSON.replace(IN_JSON[IN_JSON.index('      "grants"') : IN_JSON.index('      "with"')], "")
    after = written(without, "read", ORDERS)
    assert json.loads(after)["steps"]["read"]["grants"]["db"]["privileges"] == [ORDERS.as_json()]
    assert '"postgres.query",\n      "grants": { "db": { "kind": "database", ' in after


ANCHORED_BELOW = [
    "[{ delete: &name shop.log }, { usage: *name }]",
    "[{ select: &name shop.customer, columns: [id] }, { delete: *name }]",
]


@pytest.mark.parametrize("privileges", ANCHORED_BELOW)
def test_an_anchor_in_something_that_goes_is_refused_with_the_reason(privileges: str) -> None:
    with pytest.raises(UsageError, match="step `work` is written with a YAML anchor or alias"):
        written(in_list(privileges), "work", ORDERS)
