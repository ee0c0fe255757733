"""Reading what PostgreSQL prints of a query: who needs what on which relation, what is called, and by which names.

`debug_print_rewritten` (PostgreSQL manual, 19.8.1) shows the tree after parse analysis and rewriting.
Its `RTEPERMISSIONINFO` nodes are what the executor checks privileges by (source: `nodes/parsenodes.h`),
so that nothing has to be guessed: `*`, views, NATURAL JOIN, MERGE and all the rest are resolved there.
`debug_print_parse` shows it before rewriting: what the text itself names, and not what stands behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from orchestrator.inference.analysis.nodes import Node, read_node, read_value

INSERT, SELECT, UPDATE, DELETE = 1, 2, 4, 8
"""Bits of `requiredPerms` (`nodes/parsenodes.h`, `ACL_INSERT` and so on)."""

_OFFSET = 7
"""What is added to attribute numbers in the bit sets (`access/sysattr.h`, `FirstLowInvalidHeapAttributeNumber`)."""

_RTE_CTE = "6"
_CMD_SELECT = "1"

NAMED_TYPES = (24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4191)
"""Types whose values are the names of something: `regproc`, `regprocedure`, `regoper`, `regoperator`, `regclass`,
`regtype`, `regconfig`, `regdictionary`, `regcollation`."""

_PERMISSION = re.compile(
    r"\{RTEPERMISSIONINFO\s+:relid\s+(\d+)\s+:inh\s+(\w+)\s+:requiredPerms\s+(\d+)\s+:checkAsUser\s+(\d+)"
    r"\s+:selectedCols\s+\(b([^)]*)\)\s+:insertedCols\s+\(b([^)]*)\)\s+:updatedCols\s+\(b([^)]*)\)"
)
_FUNCTIONS = re.compile(r":(?:funcid|opfuncid|aggfnoid|winfnoid)\s+(\d+)")
_BY_NAME = re.compile(
    r":(?:aggfnoid|winfnoid)\s+(\d+)"
    r"|\{FUNCEXPR\s+:funcid\s+(\d+)\s+:funcresulttype\s+\d+\s+:funcretset\s+\w+\s+:funcvariadic\s+\w+\s+:funcformat\s+0"
)
_OPERATORS = re.compile(r":opno\s+(\d+)")
_OF_ROWS = re.compile(r":opnos\s+\(o([\d\s]+)\)")
_CALL = re.compile(
    r"\{(?:FUNCEXPR|OPEXPR|DISTINCTEXPR|NULLIFEXPR|AGGREF|WINDOWFUNC)\s+:(?:funcid|aggfnoid|winfnoid|opno\s+\d+\s+:opfuncid)\s+(\d+)"
)
_DOMAINS = re.compile(r"\{COERCETODOMAIN\s")
_INPUT_TYPES = re.compile(r"\{CONST\s+:consttype\s+(\d+)|\{COERCEVIAIO\s+:arg\s")
_NAMED_CONSTANT = re.compile(
    rf"\{{CONST\s+:consttype\s+({'|'.join(map(str, NAMED_TYPES))})\b[^{{}}]*?:constvalue\s+\d+\s+\[([-\d\s]+)\]"
)
_BY_TEXT = re.compile(r"\{COERCEVIAIO\s")
_OF_A_ROW = ("VAR", "PARAM", "AGGREF", "WINDOWFUNC", "SUBLINK", "QUERY")
_UNUSED = re.compile(r":cterefcount\s+0\b")


@dataclass(frozen=True, slots=True)
class Permission:
    """What is checked on one relation, as attribute numbers: 0 is the whole row, below are system columns.

    `owner` says that it is checked as the owner of a view or a rule, and not as whoever runs the statement.
    """

    relation: int
    required: int
    owner: bool
    inherited: bool
    """Whether partitions and tables that inherit come along: not with ONLY."""
    select: frozenset[int]
    insert: frozenset[int]
    update: frozenset[int]


@dataclass(frozen=True, slots=True)
class Tree:
    """One printed tree, or several. What nothing refers to is cut out of the text."""

    text: str

    def permissions(self) -> tuple[Permission, ...]:
        """What is checked, relation by relation."""
        return tuple(
            Permission(
                int(relation),
                int(required),
                owner != "0",
                inherited == "true",
                _numbers(select),
                _numbers(insert),
                _numbers(update),
            )
            for relation, inherited, required, owner, select, insert, update in _PERMISSION.findall(self.text)
            if required != "0"
        )

    def functions(self) -> frozenset[int]:
        """Every function that is called: by name, as an operator, as a cast, as an aggregate."""
        return frozenset(int(oid) for oid in _FUNCTIONS.findall(self.text)) - {0}

    def functions_by_name(self) -> frozenset[int]:
        """Those that the text calls by their names."""
        return frozenset(int(one or other) for one, other in _BY_NAME.findall(self.text))

    def operators(self) -> frozenset[int]:
        """The operators that are used."""
        found = {int(oid) for oid in _OPERATORS.findall(self.text)}
        return frozenset(found.union(*(map(int, oids.split()) for oids in _OF_ROWS.findall(self.text)))) - {0}

    def named_constants(self) -> frozenset[tuple[int, int]]:
        """Constants that name an object, as type (`regclass` and the like) and object id."""
        return frozenset((int(kind), oid_of(value)) for kind, value in _NAMED_CONSTANT.findall(self.text))

    def calls(self, functions: Iterable[int]) -> Iterator[Node]:
        """The calls of these functions, with their arguments."""
        wanted = set(functions)
        if not wanted:
            return
        for match in _CALL.finditer(self.text):
            if int(match[1]) in wanted:
                yield read_node(self.text, match.start())

    def domains(self) -> frozenset[int]:
        """The types whose constraints may be looked at: domains that something is coerced to, and types of constants
        and of what is read from a text, which may hold such domains."""
        found = {int(kind) for kind in _INPUT_TYPES.findall(self.text) if kind}
        for match in _DOMAINS.finditer(self.text):
            found.add(read_node(self.text, match.start()).number("resulttype"))
        found |= {node.number("resulttype") for node, _ in self.casts_by_text()}
        return frozenset(found)

    def casts_by_text(self) -> Iterator[tuple[Node, Node]]:
        """Where a value becomes one of another type by way of a text, with what is cast."""
        for match in _BY_TEXT.finditer(self.text):
            node = read_node(self.text, match.start())
            (inner,) = node.nodes("arg")
            yield node, inner


def is_constant(node: Node) -> bool:
    """Whether an expression does not depend on any row, so that the planner computes it."""
    return not any(each.kind in _OF_A_ROW for each in node.walk())


def read_tree(text: str) -> Tree:
    """The tree without the WITH queries that nothing uses: PostgreSQL does not carry them out, nor check them."""
    if not _UNUSED.search(text):
        return Tree(text)
    value = read_value(f"({text})")
    assert isinstance(value, list)
    for start, end in sorted(_unused(value), reverse=True):
        text = text[: start - 1] + text[end - 1 :]  # of the bracket that was put before
    return Tree(text)


def _unused(value: list[object]) -> list[tuple[int, int]]:
    """Where the WITH queries stand that are only read, and that nothing which is carried out refers to.

    A reference counts where it stands in a used part: of a query that is not used itself, it is none.
    """
    ctes: dict[int, tuple[Node, set[int]]] = {}
    roots: set[int] = set()

    def visit(each: object, queries: list[Node], used_by: set[int]) -> None:
        pending: list[tuple[object, list[Node], set[int]]] = [(each, queries, used_by)]
        while pending:
            here, around, user = pending.pop()
            if isinstance(here, list):
                pending.extend((one, around, user) for one in here)
                continue
            if not isinstance(here, Node):
                continue
            if here.kind == "QUERY":
                around = [*around, here]
            if here.kind == "RANGETBLENTRY" and here.text("rtekind") == _RTE_CTE:
                level = here.number("ctelevelsup")
                if level < len(around) and (cte := _cte(around[-1 - level], here.text("ctename"))) is not None:
                    user.add(cte.start)
            if here.kind == "COMMONTABLEEXPR" and _is_read_only(here):
                own: set[int] = set()
                ctes[here.start] = (here, own)
                user = own
            pending.extend((one, around, user) for one in here.fields.values())

    visit(value, [], roots)
    used: set[int] = set()
    pending = list(roots)
    while pending:
        start = pending.pop()
        if start not in used:
            used.add(start)
            if start in ctes:
                pending.extend(ctes[start][1])
    return _outermost([(node.start, node.end) for start, (node, _) in ctes.items() if start not in used])


def _cte(query: Node, name: str) -> Node | None:
    return next((each for each in query.nodes("cteList") if each.text("ctename") == name), None)


def _is_read_only(cte: Node) -> bool:
    return all(query.text("commandType") == _CMD_SELECT for query in cte.nodes("ctequery"))


def _outermost(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if not found or start >= found[-1][1]:
            found.append((start, end))
    return found


def constant_text(node: Node, encoding: str) -> str | None:
    """The text of a constant of a type like `text`; None for anything else, and for NULL."""
    if node.kind != "CONST" or node.number("consttype") not in _TEXTS or node.text("constisnull") != "false":
        return None
    words = node.fields.get("constvalue")
    if not isinstance(words, list):
        return None
    data = bytes(int(word) & 255 for word in words[2:-1] if isinstance(word, str))
    short = bool(data and data[0] & 1)
    return data[1 if short else 4 :].decode(encoding, "replace")


_TEXTS = (25, 1043)


def constant_oid(node: Node) -> int | None:
    """The object id of a constant; None for anything else, and for NULL."""
    words = node.fields.get("constvalue")
    if node.kind != "CONST" or node.text("constisnull") != "false" or not isinstance(words, list):
        return None
    return oid_of(" ".join(word for word in words[2:-1] if isinstance(word, str)))


def oid_of(value: str) -> int:
    """The object id in the bytes of a constant, which are printed as signed numbers."""
    return int.from_bytes(bytes(int(byte) & 255 for byte in value.split()[:4]), "little")


_TYPES = {
    "VAR": "vartype",
    "CONST": "consttype",
    "PARAM": "paramtype",
    "AGGREF": "aggtype",
    "WINDOWFUNC": "wintype",
    "SUBSCRIPTINGREF": "refrestype",
    "FUNCEXPR": "funcresulttype",
    "OPEXPR": "opresulttype",
    "NULLIFEXPR": "opresulttype",
    "FIELDSELECT": "resulttype",
    "FIELDSTORE": "resulttype",
    "RELABELTYPE": "resulttype",
    "COERCEVIAIO": "resulttype",
    "ARRAYCOERCEEXPR": "resulttype",
    "CONVERTROWTYPEEXPR": "resulttype",
    "COERCETODOMAIN": "resulttype",
    "CASEEXPR": "casetype",
    "ARRAYEXPR": "array_typeid",
    "ROWEXPR": "row_typeid",
    "COALESCEEXPR": "coalescetype",
    "MINMAXEXPR": "minmaxtype",
    "SQLVALUEFUNCTION": "type",
    "NEXTVALUEEXPR": "typeId",
}
_TRUTHS = ("BOOLEXPR", "NULLTEST", "BOOLEANTEST", "SCALARARRAYOPEXPR", "DISTINCTEXPR", "ROWCOMPAREEXPR")
_BOOLEAN = 16


def type_of(node: Node) -> int | None:
    """The type of an expression (`exprType` in `nodes/nodeFuncs.c`); None where it is not in the node itself."""
    if node.kind == "NAMEDARGEXPR":
        inner = node.nodes("arg")
        return type_of(inner[0]) if inner else None
    if node.kind in _TRUTHS:
        return _BOOLEAN
    name = _TYPES.get(node.kind)
    return node.number(name) or None if name else None


def _numbers(bits: str) -> frozenset[int]:
    return frozenset(int(bit) - _OFFSET for bit in bits.split())
