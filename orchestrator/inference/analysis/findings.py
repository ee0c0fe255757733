"""What was found of one text: what it needs, what could not be known, and what is worth knowing."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.grants.privileges import ALL_COLUMNS, Privilege, Verb, merge, qualified
from orchestrator.inference.analysis.catalog import FIRST_USER_OID, SYSTEM_COLUMNS, Catalog, Relation
from orchestrator.inference.analysis.trees import DELETE, INSERT, SELECT, UPDATE, Permission

_COLUMN_VERBS: tuple[tuple[int, Verb], ...] = ((SELECT, "select"), (INSERT, "insert"), (UPDATE, "update"))


@dataclass(frozen=True, slots=True)
class Inferred:
    """The smallest privileges, and what could not be known: then the rest has to be declared by hand.

    `everyones` are functions and schemas that are used and that everybody may use: declaring them is allowed, not
    needed. `remarks` are no privileges, and worth knowing before the step runs.
    """

    privileges: tuple[Privilege, ...]
    notes: tuple[str, ...] = ()
    everyones: tuple[Privilege, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the privileges are all that the statements need."""
        return not self.notes


@dataclass(slots=True)
class Findings:
    """Collected while a text is looked through."""

    catalog: Catalog
    privileges: list[Privilege] = field(default_factory=list)
    everyones: list[Privilege] = field(default_factory=list)
    schemas: set[str] = field(default_factory=set)
    _any: list[tuple[Verb, Relation]] = field(default_factory=list)
    _notes: dict[str, None] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Something that cannot be known."""
        self._notes[text] = None

    def checked(self, permission: Permission) -> None:
        """What is checked on one relation as whoever runs the statement."""
        relation = self.catalog.relation(permission.relation)
        if relation.oid < FIRST_USER_OID and permission.required == SELECT and self._is_public(permission, relation):
            return
        name = qualified(relation.schema, relation.name)
        if relation.kind == "S":
            self.note(f"reading the sequence {name} as a table needs SELECT on it, which no grant can declare")
            return
        if relation.unmapped:
            self.note(
                f"{name} is a foreign table, and the server `{relation.unmapped}` has no user mapping of PUBLIC, "
                "which is the only one that a step's login can use"
            )
        self._row_security(permission, relation, name)
        for (bit, verb), numbers in zip(
            _COLUMN_VERBS, (permission.select, permission.insert, permission.update), strict=True
        ):
            if permission.required & bit:
                self._columns(verb, relation, numbers)
        if permission.required & DELETE:
            self.privileges.append(Privilege("delete", relation.schema, relation.name))

    def finish(self) -> Inferred:
        """All of it, put together."""
        for verb, relation in self._any:
            self._some_column(verb, relation)
        covered = {privilege.schema for privilege in self.privileges}
        for schema in sorted(self.schemas - covered):
            used = Privilege("schema", schema, "")
            (self.everyones if self.catalog.is_open(schema) else self.privileges).append(used)
        privileges = merge(self.privileges)
        hidden = self.catalog.hidden_rows(privileges)
        remarks = tuple(f"{each}: {each.remedy('the scope role of the grant')}" for each in hidden)
        return Inferred(privileges, tuple(self._notes), merge(self.everyones), remarks)

    def _columns(self, verb: Verb, relation: Relation, numbers: frozenset[int]) -> None:
        if not numbers:
            self._any.append((verb, relation))
            return
        named = [SYSTEM_COLUMNS.get(number) or relation.columns[number] for number in numbers if number]
        if 0 in numbers:  # the whole row
            named += relation.columns.values()
        if "*" in named:
            self.note(f"{qualified(relation.schema, relation.name)} has a column `*`, which no grant can name")
        if named:
            self.privileges.append(Privilege(verb, relation.schema, relation.name, tuple(sorted({*named} - {"*"}))))
        else:
            self.privileges.append(Privilege(verb, relation.schema, relation.name, ALL_COLUMNS))

    def _some_column(self, verb: Verb, relation: Relation) -> None:
        """`count(*)` and the like need the verb on any one column: one that is needed anyhow, else the key's first.

        Of a table without columns only the whole can be granted.
        """
        key = (relation.schema, relation.name, verb)
        if not any(each.key == key for each in self.privileges):
            number = relation.foremost
            columns = ALL_COLUMNS if number is None else (relation.columns[number],)
            self.privileges.append(Privilege(verb, relation.schema, relation.name, columns))

    def _row_security(self, permission: Permission, relation: Relation, name: str) -> None:
        if relation.hides_rows:
            self.note(
                f"the row security of {name} is for the step and not for the login that infers, so that what its "
                "policies need is not seen: let an ordinary login infer, one that is not the owner"
            )

    def _is_public(self, permission: Permission, relation: Relation) -> bool:
        """Whether everybody may read this system catalog, or the columns of it that are asked for."""
        numbers = relation.columns.keys() if 0 in permission.select else permission.select
        return self.catalog.is_public(relation.oid, sorted(numbers))
