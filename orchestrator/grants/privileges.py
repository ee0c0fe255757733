"""What a database grant opens in the database: verbs on tables, columns, rows, functions, sequences and schemas.

A privilege is written in a workflow like a sentence, `select: shop.orders` with `columns:` and
`where:`, and is the same value everywhere in code: what is declared, inferred, compiled and proven.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Verb = Literal["select", "insert", "update", "delete", "execute", "usage", "schema"]
TABLE_VERBS: tuple[Verb, ...] = ("select", "insert", "update", "delete")
VERBS: tuple[Verb, ...] = (*TABLE_VERBS, "execute", "usage", "schema")
ColumnVerb = Literal["select", "insert", "update"]
COLUMN_VERBS: frozenset[Verb] = frozenset({"select", "insert", "update"})
WRITING_VERBS: frozenset[Verb] = frozenset({"insert", "update", "delete", "usage"})

ALL_COLUMNS = ("*",)
"""Stands for `columns: all`: every column, those added later included."""

Constant = str | int | bool
_MAX_BYTES = 63
_PART = re.compile(r'"((?:[^"\x00]|"")+)"|([^\W\d][\w$]*)')
_PLAIN = re.compile(r"[a-z_][a-z0-9_$]*")
_EXPRESSION = re.compile(r"\s*\$\{\{.*\}\}\s*", re.DOTALL)


@dataclass(frozen=True, slots=True, order=True)
class Bound:
    """A row limit whose value only the run knows. `expression` is the text in the workflow."""

    expression: str


@dataclass(frozen=True, slots=True)
class RowLimit:
    """Only rows whose `column` equals `value`."""

    column: str
    value: Constant | Bound


@dataclass(frozen=True, slots=True)
class Privilege:
    """One verb on one object. Names are exact: what quoting and folding made of them is over.

    `columns` is sorted for `select`, `insert` and `update`, `ALL_COLUMNS` for all, and empty for the
    other verbs. The `name` of a function carries its argument types: `refresh(integer)`. The verb `schema` is
    USAGE on the schema, for the sake of what is in it and open to everybody; its `name` is empty. A privilege on
    anything else brings USAGE on its schema along.
    """

    verb: Verb
    schema: str
    name: str
    columns: tuple[str, ...] = ()
    where: tuple[RowLimit, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is about; a grant has one privilege of each key."""
        return (self.schema, self.name, self.verb)

    @property
    def object(self) -> str:
        """What it is about, as it is written: names quoted only where they must be."""
        if self.verb == "schema":
            return quoted(self.schema)
        return qualified(self.schema, self.name, function=self.verb == "execute")

    def as_json(self) -> dict[str, Any]:
        """The privilege as it is written in a workflow, canonically: names quoted only where they must be."""
        parts: dict[str, Any] = {self.verb: self.object}
        if self.columns:
            parts["columns"] = "all" if self.columns == ALL_COLUMNS else list(self.columns)
        if self.where:
            parts["where"] = {
                limit.column: limit.value.expression if isinstance(limit.value, Bound) else limit.value
                for limit in self.where
            }
        return parts

    def describe(self) -> str:
        """`select (comment, id) on public.feedback where customer_id = ${{ inputs.customer }}`."""
        columns = "" if not self.columns else f" ({'all' if self.columns == ALL_COLUMNS else ', '.join(self.columns)})"
        limits = " and ".join(
            f"{limit.column} = {limit.value.expression if isinstance(limit.value, Bound) else limit.value!r}"
            for limit in self.where
        )
        if self.verb == "schema":
            return f"usage of the schema {self.object}"
        text = f"{self.verb}{columns} on {self.object}"
        return f"{text} where {limits}" if limits else text


def merge(privileges: Iterable[Privilege]) -> tuple[Privilege, ...]:
    """Sorted, with the columns of the same verb on the same object put together.

    Raises ValueError where the same verb on the same object has different row limits.
    """
    found: dict[tuple[str, str, str], Privilege] = {}
    for privilege in privileges:
        known = found.get(privilege.key)
        if known is None:
            found[privilege.key] = privilege
            continue
        if known.where != privilege.where:
            raise ValueError(f"`{privilege.verb}` on {privilege.object} is declared twice with different row limits")
        columns = {*known.columns, *privilege.columns}
        merged = ALL_COLUMNS if "*" in columns else tuple(sorted(columns))
        found[privilege.key] = Privilege(known.verb, known.schema, known.name, merged, known.where)
    return tuple(found[key] for key in sorted(found))


def digest(privileges: Iterable[Privilege]) -> str:
    """32 hexadecimal digits (128 bits) that name what the privileges allow, run-time values left open.

    So many that nobody finds two sets of privileges with one name: whoever may run one would have the other.
    """
    text = json.dumps(shape(privileges), separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def shape(privileges: Iterable[Privilege]) -> list[object]:
    """What the privileges allow, as JSON, run-time values left open: the same for all that share a scope role."""
    return [
        [
            *privilege.key,
            list(privilege.columns),
            [
                [limit.column, None if isinstance(limit.value, Bound) else [type(limit.value).__name__, limit.value]]
                for limit in privilege.where
            ],
        ]
        for privilege in merge(privileges)
    ]


def bound_limits(privileges: Iterable[Privilege]) -> tuple[tuple[Privilege, RowLimit], ...]:
    """The row limits that the run binds, in the order in which their values are numbered from 1."""
    return tuple(
        (privilege, limit)
        for privilege in merge(privileges)
        for limit in privilege.where
        if isinstance(limit.value, Bound)
    )


def parse_qualified(text: str, *, default_schema: str = "public") -> tuple[str, str]:
    """Schema and name of `shop.orders`, `orders` or `"My Schema"."Orders"`, by PostgreSQL's rules.

    What stands outside double quotes is folded to lower case (PostgreSQL manual, 4.1.1). Raises
    ValueError for anything else, and for names longer than 63 bytes, which the server would cut.
    """
    parts, position = _name_at_the_start(text)
    if position != len(text) or not 1 <= len(parts) <= 2 or text.endswith("."):
        raise ValueError(f'{text!r} is not a name like `orders`, `shop.orders` or `shop."Orders 2024"`')
    for part in parts:
        check_identifier(part)
    return (parts[0], parts[1]) if len(parts) == 2 else (default_schema, parts[0])


def _name_at_the_start(text: str) -> tuple[list[str], int]:
    """The parts of the name with which a text begins, and where it ends."""
    parts, position = [], 0
    while match := _PART.match(text, position):
        parts.append(match.group(1).replace('""', '"') if match.group(1) is not None else match.group(2).lower())
        position = match.end()
        if text[position : position + 1] != ".":
            break
        position += 1
    return parts, position


def check_identifier(name: str) -> str:
    """The name itself. Raises ValueError for what PostgreSQL cannot hold as one."""
    if not name or "\x00" in name:
        raise ValueError("a name in the database has at least one character, and no NUL")
    if len(name.encode("utf-8", "surrogatepass")) > _MAX_BYTES:
        raise ValueError(f"{name!r} is longer than the {_MAX_BYTES} bytes that PostgreSQL keeps of a name")
    return name


def parse_function(text: str) -> tuple[str, str]:
    """Schema and `name(types)` of `app.refresh(integer, text)`. Raises ValueError.

    The argument types are those of the declaration, as `\\df` shows them; the database resolves them.
    """
    written = text.strip()
    _, end = _name_at_the_start(written)
    given = written[end:].lstrip()
    if not given.startswith("(") or not given.endswith(")") or ";" in given:
        raise ValueError(f"{text!r} is not a function with its argument types, like `app.refresh(integer)`")
    schema, name = parse_qualified(written[:end])
    types = ", ".join(part.strip() for part in given[1:-1].split(",") if part.strip())
    return schema, f"{quoted(name)}({types})"


def quoted(name: str) -> str:
    """A name as one writes it: in double quotes only where it needs them."""
    return name if _PLAIN.fullmatch(name) else '"' + name.replace('"', '""') + '"'


def qualified(schema: str, name: str, *, function: bool = False) -> str:
    """`schema.name`, quoted where needed; the name of a function is already."""
    return f"{quoted(schema)}.{name if function else quoted(name)}"


def parse_schema(text: str) -> str:
    """The name of a schema as it is written, by the rules of `parse_qualified`. Raises ValueError."""
    match = _PART.fullmatch(text)
    if match is None:
        raise ValueError(f'{text!r} is not the name of a schema like `extensions` or `"My Schema"`')
    return parse_qualified(f"{text}.x")[0]


def _table(value: str) -> str:
    parse_qualified(value)
    return value


def _function(value: str) -> str:
    parse_function(value)
    return value


def _schema(value: str) -> str:
    parse_schema(value)
    return value


def _columns(value: object) -> object:
    if value != "all" and isinstance(value, str):
        raise ValueError("write the columns as a list, or `all`")
    return value


def _column(value: str) -> str:
    if value == "*":
        raise ValueError("write `columns: all` where every column is meant")
    return check_identifier(value)


TableName = Annotated[str, AfterValidator(_table)]
ColumnName = Annotated[str, AfterValidator(_column)]


class DeclaredPrivilege(BaseModel):
    """One line under `privileges:`: a verb with what it is about, the columns, and the rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    select: TableName | None = Field(default=None, description="A table or view to read.", examples=["shop.orders"])
    insert: TableName | None = Field(default=None, description="A table or view to add rows to.")
    update: TableName | None = Field(default=None, description="A table or view to change rows of.")
    delete: TableName | None = Field(default=None, description="A table or view to delete rows from.")
    execute: Annotated[str, AfterValidator(_function)] | None = Field(
        default=None, description="A function with its argument types.", examples=["app.refresh(integer)"]
    )
    usage: TableName | None = Field(default=None, description="A sequence to take numbers from.")
    schema_: Annotated[str, AfterValidator(_schema)] | None = Field(
        default=None,
        alias="schema",
        description="A schema of which names are used: functions, types and operators that everybody may use. "
        "Any other privilege on something in it brings this along.",
        examples=["extensions"],
    )
    columns: Annotated[
        list[ColumnName] | Literal["all"],
        BeforeValidator(_columns),
        Field(description="The columns, by their exact names; `all` only where it is meant."),
    ] = Field(default_factory=list)
    where: dict[ColumnName, Constant] = Field(
        default_factory=dict,
        description="Only rows in which each of these columns has this value: a constant, or one `${{ }}` expression.",
    )

    @model_validator(mode="after")
    def _one_sentence(self) -> DeclaredPrivilege:
        verbs = [verb for verb in VERBS if self._object(verb) is not None]
        if len(verbs) != 1:
            raise ValueError(f"a privilege has exactly one of {', '.join(VERBS)}")
        verb = verbs[0]
        if verb in COLUMN_VERBS and not self.columns:
            raise ValueError(f"`{verb}` names its `columns`: a list, or `all` where that is meant")
        if verb not in COLUMN_VERBS and self.columns:
            raise ValueError(f"`{verb}` has no `columns`")
        if verb not in TABLE_VERBS and self.where:
            raise ValueError(f"`{verb}` has no rows to limit with `where`")
        for column, value in self.where.items():
            if isinstance(value, str) and "${{" in value and not _EXPRESSION.fullmatch(value):
                raise ValueError(f"the limit on `{column}` is one constant, or one whole `${{{{ }}}}` expression")
        return self

    def privilege(self) -> Privilege:
        """The same as a value."""
        verb, text = next((verb, text) for verb in VERBS if (text := self._object(verb)) is not None)
        match verb:
            case "schema":
                schema, name = parse_schema(text), ""
            case "execute":
                schema, name = parse_function(text)
            case _:
                schema, name = parse_qualified(text)
        columns = ALL_COLUMNS if self.columns == "all" else tuple(sorted(set(self.columns)))
        limits = tuple(
            RowLimit(column, Bound(value.strip()) if isinstance(value, str) and "${{" in value else value)
            for column, value in sorted(self.where.items())
        )
        return Privilege(verb, schema, name, columns, limits)

    def _object(self, verb: Verb) -> str | None:
        found: str | None = self.schema_ if verb == "schema" else getattr(self, verb)
        return found
