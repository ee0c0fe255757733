"""Having PostgreSQL analyse a statement: it is prepared, never carried out, and what the server prints is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql

from orchestrator.errors import Unreachable
from orchestrator.inference.analysis.trees import Tree, read_tree
from orchestrator.network.postgres import STRINGS, reads_as_parsed

_BEGIN = (
    "BEGIN READ ONLY; SET LOCAL client_min_messages = log; SET LOCAL debug_pretty_print = off;"
    " SET LOCAL debug_print_parse = on; SET LOCAL debug_print_rewritten = on"
)
_QUIET = (
    "SET LOCAL client_min_messages = warning; SET LOCAL debug_print_parse = off;"
    " SET LOCAL debug_print_rewritten = off; DEALLOCATE orchestrator_inference"
)
PREPARE = "PREPARE orchestrator_inference"
_ANALYSED, _REWRITTEN = "parse tree:", "rewritten parse tree:"
_OF_PREPARE = "{QUERY :commandType 6 "
"""How the tree begins of a command that is no query, such as PREPARE itself."""


@dataclass(frozen=True, slots=True)
class Trees:
    """What the server made of one statement: before rewriting, and after it."""

    analysed: Tree
    rewritten: Tree


@contextmanager
def prepared(
    session: psycopg.Connection, statement: str, types: Sequence[str] = (), path: str | None = None
) -> Iterator[Trees]:
    """Prepare a statement with parameters `$n` of these types, under a search path of its own if there is one.

    Within the block the path holds. Nothing is left in the session afterwards. Raises psycopg.Error where the server
    refuses the statement, and Unreachable where it may mean something else to the server.
    """
    _must_mean_the_same(session)
    printed: list[tuple[str, str]] = []

    def hear(notice: psycopg.errors.Diagnostic) -> None:
        printed.append((notice.message_primary or "", notice.message_detail or ""))

    declared = f"({', '.join(types)})" if types else ""
    try:
        session.execute(_BEGIN)
        if path is not None:
            session.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.SQL(path)))
        session.add_notice_handler(hear)
        try:
            # By the extended protocol, which takes one command only: nothing can come along with this one.
            session.execute(f"{PREPARE}{declared} AS {statement}".encode(), prepare=True)  # a statement, not a value
        finally:
            session.remove_notice_handler(hear)
        session.execute(_QUIET)
        yield Trees(_tree(printed, _ANALYSED), _tree(printed, _REWRITTEN))
    finally:
        if not session.closed:
            session.execute("ROLLBACK")


def place_in(error: psycopg.Error, types: Sequence[str]) -> int:
    """Where in the statement the server found fault, counted in characters from 0; -1 where it does not say."""
    declared = f"({', '.join(types)})" if types else ""
    position = error.diag.statement_position
    return int(position) - 1 - len(f"{PREPARE}{declared} AS ") if position else -1


def _tree(printed: Sequence[tuple[str, str]], title: str) -> Tree:
    texts = [text for heading, text in printed if heading == title and _OF_PREPARE not in text[:40]]
    return Tree("\n".join(read_tree(text).text for text in texts))


def _must_mean_the_same(session: psycopg.Connection) -> None:
    """The statement comes from a file: what stands in its texts must be text to the server, too."""
    if not reads_as_parsed(session.info.parameter_status(STRINGS)):
        raise Unreachable(
            f"the session has {STRINGS} switched off, so that the SQL may mean something else to the server",
            hint="does something between here and the server drop the options of the session?",
        )
