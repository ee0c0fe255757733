"""What the functions need that a statement calls: EXECUTE, and whatever their bodies do as whoever calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import psycopg

from orchestrator.errors import UsageError
from orchestrator.grants.privileges import Privilege, qualified
from orchestrator.inference.analysis.bodies import Arguments, body_statements, with_argument
from orchestrator.inference.analysis.builtins import (
    COMPUTING_EXTENSIONS,
    LARGE_OBJECTS,
    NAMES_ARE_LOOKED_UP,
    OF_A_PREDEFINED_ROLE,
    OF_AN_OWNER,
    QUIET_TRIGGERS,
    RUN_A_QUERY_OF_TWO,
    RUN_A_TEXT,
    SEQUENCES,
)
from orchestrator.inference.analysis.catalog import FIRST_USER_OID, Catalog, Function
from orchestrator.inference.analysis.findings import Findings
from orchestrator.inference.analysis.nodes import Node, read_value
from orchestrator.inference.analysis.prepared import place_in
from orchestrator.inference.analysis.trees import NAMED_TYPES, Tree, constant_oid, constant_text, is_constant, type_of
from orchestrator.inference.statements import Dynamic, Text

_DEPTH = 16
"""How deep functions that call functions are followed."""

_TO_REGCLASS, _SERIAL_SEQUENCE = 1079, 1665
"""The cast from a text to `regclass`, and `pg_get_serial_sequence` (`pg_proc.dat`)."""

Analyse = Callable[[Text, Sequence[str], "str | None", int, bool], None]
"""A statement with parameters of these types, under a search path, at a depth; whether its names are looked up."""


class Functions:
    """Follows calls into the functions that are called. For one text."""

    def __init__(self, catalog: Catalog, findings: Findings, analyse: Analyse) -> None:
        self._catalog = catalog
        self._findings = findings
        self._analyse = analyse
        self._seen: set[tuple[int, tuple[int, ...]]] = set()

    def called(self, tree: Tree, depth: int) -> None:
        """Everything that a tree calls, and the constraints of the domains in it."""
        oids = tree.functions()
        built_in = {oid for oid in oids if oid < FIRST_USER_OID}
        for schema, signature in self._catalog.restricted(built_in):
            self._findings.privileges.append(Privilege("execute", schema, signature))
        self._built_in(tree, built_in)
        functions = self._catalog.functions(oids - built_in)
        for function in functions:
            self._function(function, list(tree.calls([function.oid])), depth)
        casts = [(node.number("resulttype"), inner) for node, inner in tree.casts_by_text()]
        constants = [(made, inner) for made, inner in casts if is_constant(inner)]
        kinds = [kind for _, inner in constants if (kind := type_of(inner)) is not None]
        for function in self._catalog.functions(
            self._catalog.input_and_output((made for made, _ in constants), kinds) - oids
        ):
            self._may_execute(function)  # the planner computes it, and asks for them as for any function
        for made, inner in casts:
            if made in NAMED_TYPES:
                self._looked_up([inner], "a cast to a type like regclass")
        for text in self._catalog.domain_checks(tree.domains()):
            self.called(Tree(text), depth)

    def procedure(self, oid: int, arguments: int) -> None:
        """A procedure that is called with so many arguments."""
        for function in self._catalog.functions([oid]):
            self._may_execute(function)
            if arguments < len(function.types):
                self.called(Tree(function.defaults), 0)
            if not function.definer:
                self._runs(function, (), 0)

    def fired(self, oid: int, relation: int) -> None:
        """A trigger function: to fire it needs no EXECUTE, and it runs as whoever writes."""
        for function in self._catalog.functions([oid]):
            if function.definer or (function.name in QUIET_TRIGGERS and oid < FIRST_USER_OID):
                continue
            if function.language == "plpgsql" and self._catalog.only_computes(function, relation):
                continue
            if function.language in ("c", "internal") and function.extension in COMPUTING_EXTENSIONS:
                continue
            name = qualified(function.schema, function.signature, function=True)
            self._findings.note(
                f"the trigger function {name} ({function.language}) runs as the step: declare what it needs"
            )

    def _function(self, function: Function, calls: Sequence[Node], depth: int) -> None:
        self._may_execute(function)
        if function.defaults and (left_out := _left_out(function, calls)):
            self.called(Tree(left_out), depth)
        if function.definer:
            return
        for part in self._catalog.functions(oid for oid in function.parts if oid >= FIRST_USER_OID):
            if not part.definer:  # EXECUTE on it is asked of the aggregate's owner
                self._runs(part, (), depth)
        if function.parts:
            return
        if not _ANY & set(function.types):
            self._runs(function, (), depth)
            return
        for types in {_types(function, call) for call in calls} or {None}:
            self._runs(function, types, depth)

    def _may_execute(self, function: Function) -> None:
        where = self._findings.everyones if function.public else self._findings.privileges
        where.append(Privilege("execute", function.schema, function.signature))

    def _runs(self, function: Function, types: tuple[int, ...] | None, depth: int) -> None:
        """The body. `types` are those of the arguments at the call, where the function takes any; None: not known."""
        key = (function.oid, types or ())
        if key in self._seen:
            return
        self._seen.add(key)
        name = qualified(function.schema, function.signature, function=True)
        if function.language == "c" and function.extension in COMPUTING_EXTENSIONS:
            return
        if function.language == "internal" and not function.source.startswith(tuple(RUN_A_TEXT)):
            return
        if function.language == "plpgsql" and self._catalog.only_computes(function):
            return
        if function.language != "sql":
            self._findings.note(
                f"the function {name} ({function.language}) runs as the step: declare what its body needs"
            )
            return
        if depth >= _DEPTH or types is None:
            why = "calls others too deep" if types is not None else "is called with types that are not seen"
            self._findings.note(f"the function {name} {why}: declare what its body needs")
            return
        declared = self._catalog.type_names(types or function.types)
        arguments = Arguments(function.name, function.names)
        for statement in body_statements(function.source):
            if isinstance(statement, Dynamic):
                self._findings.note(f"in {name}: {statement.why}")
            else:
                try:
                    self._statement(statement, arguments, declared, function, depth + 1)
                except (psycopg.Error, UsageError) as error:
                    if isinstance(error, psycopg.Error) and error.sqlstate is None:
                        raise  # the connection is lost
                    said = error.diag.message_primary if isinstance(error, psycopg.Error) else error.message
                    self._findings.note(f"the function {name} is not looked into: {said}; declare what its body needs")

    def _statement(
        self, statement: Text, arguments: Arguments, types: Sequence[str], function: Function, depth: int
    ) -> None:
        """A name that is no column is an argument: the server says which, one at a time."""
        while True:
            try:
                self._analyse(statement, types, function.path, depth, not function.atomic)
            except (psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedTable) as error:
                changed = with_argument(statement.sql, place_in(error, types), arguments)
                if changed is None:
                    raise
                statement = Text(changed, statement.node)
                continue
            return

    def _built_in(self, tree: Tree, oids: set[int]) -> None:
        special = {oid: name for oid, name in self._catalog.special().items() if oid in oids}
        for oid, name in special.items():
            if name in RUN_A_TEXT or name in RUN_A_QUERY_OF_TWO:
                self._findings.note(f"{name} runs or reads what a text says: declare what that needs")
            elif name in LARGE_OBJECTS:
                self._findings.note(f"{name} needs privileges on large objects, which no grant can declare")
            elif name in OF_AN_OWNER or name in OF_A_PREDEFINED_ROLE:
                self._findings.note(f"{name} asks for more than EXECUTE: what, is in the PostgreSQL manual, chapter 9")
            elif name in NAMES_ARE_LOOKED_UP:
                for call in tree.calls([oid]):
                    self._looked_up(_texts(call), name)
            elif name in SEQUENCES:
                for call in tree.calls([oid]):
                    self._sequence(name, call)
            elif oid == _TO_REGCLASS:
                for call in tree.calls([oid]):
                    if (relation := self._relation_of(call)) is None:
                        self._looked_up(call.nodes("args"), "a cast to regclass")
                    else:
                        self._findings.schemas.add(self._catalog.relation(relation).schema)

    def _sequence(self, function: str, call: Node) -> None:
        arguments = call.nodes("args")
        sequence = self._relation_of(arguments[0]) if arguments else None
        if sequence is None:
            which = "the last sequence" if function == "lastval" else "a sequence that only the run knows"
            self._findings.note(f"{function} is called for {which}: declare `usage` of it")
            return
        relation = self._catalog.relation(sequence)
        if SEQUENCES[function] == "usage":
            self._findings.privileges.append(Privilege("usage", relation.schema, relation.name))
        else:
            name = qualified(relation.schema, relation.name)
            self._findings.note(f"setting {name} needs UPDATE on it, which no grant can declare")

    def _relation_of(self, node: Node) -> int | None:
        """The relation that an expression of type `regclass` names, if it is told from the text."""
        if node.kind == "RELABELTYPE":
            (inner,) = node.nodes("arg")
            return self._relation_of(inner)
        if node.kind == "CONST":
            return constant_oid(node)
        if node.kind != "FUNCEXPR" or node.number("funcid") != _TO_REGCLASS:
            return None
        (inner,) = node.nodes("args")
        while inner.kind in ("RELABELTYPE", "COERCEVIAIO"):
            (inner,) = inner.nodes("arg")
        if (text := constant_text(inner, self._catalog.encoding)) is not None:
            return self._ask("SELECT to_regclass(%s)::oid::int8", [text])
        if inner.kind == "FUNCEXPR" and inner.number("funcid") == _SERIAL_SEQUENCE:
            texts = [constant_text(each, self._catalog.encoding) for each in inner.nodes("args")]
            if None not in texts:
                return self._ask("SELECT to_regclass(pg_get_serial_sequence(%s, %s))::oid::int8", texts)
        return None

    def _looked_up(self, arguments: Iterable[Node], by: str) -> None:
        """Texts that name something while the statement runs: of a constant the schema can be told."""
        for each in arguments:
            text = constant_text(each, self._catalog.encoding)
            if text is None:
                self._findings.note(f"{by} looks up a name that only the run knows: declare the `schema` of it")
            else:
                query = next((query for part, query in _NAMESPACES.items() if part in by), _OF_A_RELATION)
                if (oid := self._ask(query, {"name": text})) is not None:
                    self._findings.schemas |= self._catalog.schemas([oid])

    def _ask(self, query: str, parameters: Sequence[Any] | Mapping[str, Any]) -> int | None:
        """What a name stands for; None for what is none. A savepoint is not needed: nothing is open."""
        try:
            row = self._catalog.session.execute(query.encode(), parameters).fetchone()
        except psycopg.Error as error:
            if error.sqlstate is None:
                raise
            return None
        return int(row[0]) if row and row[0] is not None else None


_OF_A_RELATION = "SELECT relnamespace::int8 FROM pg_class WHERE oid = to_regclass(%(name)s) AND oid >= 16384"
_OF_A_TYPE = "SELECT typnamespace::int8 FROM pg_type WHERE oid = to_regtype(%(name)s) AND oid >= 16384"
_NAMESPACES = {
    "to_regtype": _OF_A_TYPE,
    "has_type": _OF_A_TYPE,
    "pg_input": _OF_A_TYPE,
    "to_regcollation": "SELECT collnamespace::int8 FROM pg_collation WHERE oid = to_regcollation(%(name)s)",
    "to_regprocedure": "SELECT pronamespace::int8 FROM pg_proc WHERE oid = to_regprocedure(%(name)s)",
    "has_function": "SELECT pronamespace::int8 FROM pg_proc WHERE oid = to_regprocedure(%(name)s)",
    "to_regproc": "SELECT pronamespace::int8 FROM pg_proc WHERE oid = to_regproc(%(name)s)",
    "to_regoperator": "SELECT oprnamespace::int8 FROM pg_operator WHERE oid = to_regoperator(%(name)s)",
    "to_regoper": "SELECT oprnamespace::int8 FROM pg_operator WHERE oid = to_regoper(%(name)s)",
}
"""By what looks a name up, the schema of what it finds; for the rest it is a relation."""


def _texts(call: Node) -> list[Node]:
    """The arguments that are names of objects: those of type text, without the privilege and the column."""
    return [each for each in call.nodes("args") if type_of(each) in (25, None)][:1]


_ANY = frozenset((2276, 2277, 2283, 2776, 3500, 3831, 4537, 4538, 5077, 5078, 5079, 5080))
"""The pseudo-types that stand for any type (PostgreSQL manual, 8.21)."""


def _types(function: Function, call: Node) -> tuple[int, ...] | None:
    """The types of the arguments of a function that takes any; None where they are not seen."""
    found: list[int] = []
    given = call.nodes("args")
    for number, kind in enumerate(function.types):
        actual = type_of(given[number]) if kind in _ANY and number < len(given) else kind
        if actual is None or actual in _ANY:
            return None
        found.append(actual)
    return tuple(found)


def _left_out(function: Function, calls: Sequence[Node]) -> str:
    """The trees of the defaults that are used because a call leaves arguments out."""
    defaults = read_value(function.defaults)
    nodes = [each for each in defaults if isinstance(each, Node)] if isinstance(defaults, list) else []
    first = len(function.types) - len(nodes)
    used: set[int] = set()
    for call in calls:
        given = call.nodes("args")
        named = {each.number("argnumber") for each in given if each.kind == "NAMEDARGEXPR"}
        placed = sum(1 for each in given if each.kind != "NAMEDARGEXPR")
        used |= {number for number in range(first, len(function.types)) if number >= placed and number not in named}
    return " ".join(
        function.defaults[node.start : node.end] for number, node in enumerate(nodes, first) if number in used
    )
