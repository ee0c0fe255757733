"""What PostgreSQL's catalog says of the objects in a tree, read once for each of them.

Nothing here needs more than the right to connect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import psycopg

from orchestrator.grants.compiled import SCOPE_ROLE_PREFIX
from orchestrator.grants.privileges import Privilege
from orchestrator.grants.sql.row_security import ROW_SECURITY, HiddenRows, hidden_rows, row_security, tables_of
from orchestrator.inference.analysis.builtins import RUN_A_QUERY_OF_TWO, SPECIAL
from orchestrator.inference.analysis.plpgsql import Computation, computation

FIRST_USER_OID = 16384
"""The first object id that a server gives away after `initdb` (`access/transam.h`)."""

SYSTEM_COLUMNS = {-1: "ctid", -2: "xmin", -3: "cmin", -4: "xmax", -5: "cmax", -6: "tableoid"}
"""By attribute number (`access/sysattr.h`)."""


@dataclass(frozen=True, slots=True)
class Relation:
    """A table, a view, or whatever else has columns. `kind` is `relkind`."""

    oid: int
    schema: str
    name: str
    kind: str
    columns: Mapping[int, str]
    """By attribute number."""
    domains: Mapping[int, int]
    """The types of those columns that are of a domain."""
    foremost: int | None
    """The first column of the primary key, or of the table."""
    secured: bool
    """Whether row security is on."""
    hides_rows: bool
    """Whether it is, and the session passes it by."""
    unmapped: str
    """The foreign server for which there is no user mapping of PUBLIC, where it is a foreign table."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function, a procedure or an aggregate."""

    oid: int
    schema: str
    signature: str
    name: str
    public: bool
    """Whether everybody may execute it."""
    definer: bool
    language: str
    source: str
    """Its body as a text; of `RETURN` and `BEGIN ATOMIC` as PostgreSQL writes it."""
    atomic: bool
    """Whether its body was analysed when it was made."""
    names: tuple[str, ...]
    types: tuple[int, ...]
    """Of the arguments that go in."""
    defaults: str
    """The tree of the default values, of the last arguments."""
    path: str | None
    """Its own `search_path`."""
    extension: str
    parts: frozenset[int]
    """Of an aggregate: the functions that it is made of."""


@dataclass(slots=True)
class Catalog:
    """Of one database, through one session. What was read is kept: it is for one run of the command."""

    session: psycopg.Connection
    _relations: dict[int, Relation] = field(default_factory=dict)
    _functions: dict[int, Function] = field(default_factory=dict)
    _restricted: dict[int, tuple[str, str]] | None = None
    _computing: dict[tuple[int, int | None], bool] = field(default_factory=dict)
    _special: dict[int, str] | None = None
    _type_names: dict[int, str] = field(default_factory=dict)
    _domain_checks: dict[frozenset[int], tuple[str, ...]] = field(default_factory=dict)
    _open_schemas: frozenset[str] | None = None

    @property
    def encoding(self) -> str:
        """Of the texts in trees, as Python names it."""
        name = str(self.session.info.parameter_status("server_encoding"))
        return {"SQL_ASCII": "utf-8"}.get(name, _PYTHON.get(name, "utf-8"))

    def relations(self, oids: Iterable[int]) -> None:
        """Read these relations, all at once."""
        wanted = sorted(set(oids) - self._relations.keys())
        if not wanted:
            return
        for row in self.session.execute(_RELATIONS, {"oids": wanted}):
            oid, schema, name, kind, columns, domains, foremost, secured, hides, server = row
            self._relations[int(oid)] = Relation(
                int(oid),
                str(schema),
                str(name),
                str(kind),
                {int(number): str(column) for number, column in (columns or {}).items()},
                {int(number): int(kind) for number, kind in (domains or {}).items()},
                foremost,
                bool(secured),
                bool(hides),
                str(server or ""),
            )

    def relation(self, oid: int) -> Relation:
        """Raises KeyError where there is none."""
        self.relations([oid])
        return self._relations[oid]

    def hidden_rows(self, privileges: Sequence[Privilege]) -> list[HiddenRows]:
        """The privileges of which a step has nothing, since no permissive policy is for it or for everybody."""
        secured = {(each.schema, each.name) for each in self._relations.values() if each.secured}
        tables = [table for table in tables_of(privileges) if table in secured]
        if not tables:
            return []
        wanted = {"schemas": [schema for schema, _ in tables], "names": [name for _, name in tables]}
        security = row_security(self.session.execute(ROW_SECURITY, wanted))
        named = {role for policies in security.values() for policy in policies for role in policy.roles}
        scopes = [role for role in named if role.startswith(SCOPE_ROLE_PREFIX)]  # which one is ours is not known here
        return list(hidden_rows(privileges, security, scopes))

    def functions(self, oids: Iterable[int]) -> list[Function]:
        """These functions, by object id; what is not there is left out."""
        wanted = sorted(set(oids))
        if missing := [oid for oid in wanted if oid not in self._functions]:
            for row in self.session.execute(_FUNCTIONS, {"oids": missing}):
                self._functions[int(row[0])] = _function(row)
        return [self._functions[oid] for oid in wanted if oid in self._functions]

    def restricted(self, oids: Iterable[int]) -> list[tuple[str, str]]:
        """Of the built-in functions, those that not everybody may execute: schema and signature."""
        if self._restricted is None:
            rows = self.session.execute(_RESTRICTED, {"first": FIRST_USER_OID})
            self._restricted = {int(oid): (str(schema), str(signature)) for oid, schema, signature in rows}
        return [self._restricted[oid] for oid in sorted(oids) if oid in self._restricted]

    def special(self) -> Mapping[int, str]:
        """The built-in functions that do more than compute, by name."""
        if self._special is None:
            rows = self.session.execute(
                "SELECT oid::int8, proname, pronargs FROM pg_proc WHERE oid < %s AND proname = ANY(%s)",
                [FIRST_USER_OID, sorted(SPECIAL)],
            )
            self._special = {
                int(oid): str(name) for oid, name, arguments in rows if name not in RUN_A_QUERY_OF_TWO or arguments == 2
            }
        return self._special

    def only_computes(self, function: Function, relation: int | None = None) -> bool:
        """Whether a function in PL/pgSQL calls nothing but PostgreSQL's own, on PostgreSQL's own types.

        `relation` is the table of a trigger, whose columns the row has.
        """
        key = (function.oid, relation)
        if key not in self._computing:
            row = self.session.execute("SELECT pg_get_functiondef(%s)", [function.oid]).fetchone()
            used = computation(str(row[0]), function.source) if row and function.path is None else None
            self._computing[key] = used is not None and self._are_own(function, used, relation)
        return self._computing[key]

    def _are_own(self, function: Function, used: Computation, relation: int | None) -> bool:
        if used.functions & SPECIAL:
            return False
        parameters = {
            "first": FIRST_USER_OID,
            "functions": sorted(used.functions),
            "operators": sorted(used.operators),
            "types": sorted(used.types - {"UNKNOWN", ""}),
            "arguments": list(function.types),
            "relation": relation,
            "columns": None if used.columns is None else sorted(used.columns),
        }
        row = self.session.execute(_ARE_OWN, parameters).fetchone()
        return bool(row and row[0])

    def is_public(self, relation: int, columns: Iterable[int]) -> bool:
        """Whether everybody may read these columns of it, all of them."""
        row = self.session.execute(_PUBLIC, {"relation": relation, "columns": list(columns)}).fetchone()
        return bool(row and row[0])

    def type_names(self, oids: Iterable[int]) -> list[str]:
        """Types as one writes them under any search path."""
        wanted = list(oids)
        if missing := [oid for oid in wanted if oid not in self._type_names]:
            rows = self.session.execute(
                "SELECT t.oid::int8, format('%%I.%%I', n.nspname, t.typname) FROM pg_type t"
                " JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = ANY(%s::oid[])",
                [missing],
            )
            self._type_names.update((int(oid), str(name)) for oid, name in rows)
        return [self._type_names[oid] for oid in wanted]

    def input_and_output(self, read: Iterable[int], written: Iterable[int]) -> set[int]:
        """The functions that make values of somebody's types from texts, and texts from values."""
        types = {"read": [each for each in read if each >= FIRST_USER_OID]}
        types["written"] = [each for each in written if each >= FIRST_USER_OID]
        if not types["read"] and not types["written"]:
            return set()
        return {int(row[0]) for row in self.session.execute(_INPUT_AND_OUTPUT, types)}

    def domain_checks(self, types: Iterable[int]) -> tuple[str, ...]:
        """The trees of the constraints of these domains, and of those that are within these types."""
        wanted = frozenset(oid for oid in types if oid >= FIRST_USER_OID)
        if not wanted:
            return ()
        if wanted not in self._domain_checks:
            rows = self.session.execute(_DOMAIN_CHECKS, {"types": list(wanted)})
            self._domain_checks[wanted] = tuple(str(row[0]) for row in rows)
        return self._domain_checks[wanted]

    def schemas(self, oids: Iterable[int]) -> set[str]:
        """The names of these schemas, without the server's own."""
        rows = self.session.execute(
            "SELECT nspname FROM pg_namespace WHERE oid = ANY(%s::oid[]) AND nspname !~ '^pg_|^information_schema$'",
            [list(oids)],
        )
        return {str(row[0]) for row in rows}

    def schemas_of_functions(self, oids: Iterable[int]) -> set[str]:
        """The names of the schemas that these functions are in."""
        return {function.schema for function in self.functions(oids)}

    def is_open(self, schema: str) -> bool:
        """Whether everybody may use the names in a schema."""
        if self._open_schemas is None:
            self._open_schemas = frozenset(str(row[0]) for row in self.session.execute(_OPEN_SCHEMAS))
        return schema in self._open_schemas


def _function(row: tuple[object, ...]) -> Function:
    (oid, schema, signature, name, public, definer, language, source, atomic) = row[:9]
    (names, types, defaults, path, extension, parts) = row[9:]
    return Function(
        int(str(oid)),
        str(schema),
        str(signature),
        str(name),
        bool(public),
        bool(definer),
        str(language),
        str(source),
        bool(atomic),
        tuple(str(each) for each in names) if isinstance(names, list) else (),
        tuple(int(each) for each in types) if isinstance(types, list) else (),
        str(defaults or ""),
        None if path is None else str(path),
        str(extension or ""),
        frozenset(int(each) for each in parts) - {0} if isinstance(parts, list) else frozenset(),
    )


_PYTHON = {
    "UTF8": "utf-8",
    "LATIN1": "iso8859-1",
    "LATIN2": "iso8859-2",
    "LATIN5": "iso8859-9",
    "LATIN9": "iso8859-15",
    "WIN1250": "cp1250",
    "WIN1251": "cp1251",
    "WIN1252": "cp1252",
    "KOI8R": "koi8_r",
    "EUC_JP": "euc_jp",
    "EUC_KR": "euc_kr",
}

_RELATIONS = """
SELECT c.oid::int8, n.nspname, c.relname, c.relkind::text,
    (SELECT json_object_agg(attnum, attname) FROM pg_attribute
     WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
    (SELECT json_object_agg(a.attnum, a.atttypid::int8) FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND t.typtype = 'd'),
    (SELECT a.attnum FROM pg_attribute a
     LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary AND a.attnum = ANY(i.indkey)
     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
     ORDER BY i.indrelid IS NULL, array_position(i.indkey::smallint[], a.attnum), a.attnum LIMIT 1),
    c.relrowsecurity, CASE WHEN c.relrowsecurity THEN NOT row_security_active(c.oid) ELSE false END,
    (SELECT s.srvname FROM pg_foreign_table f JOIN pg_foreign_server s ON s.oid = f.ftserver
     JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw WHERE f.ftrelid = c.oid AND w.fdwname <> 'file_fdw'
     AND NOT EXISTS (SELECT FROM pg_user_mappings m WHERE m.srvid = s.oid AND m.umuser = 0))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY(%(oids)s::oid[])
"""

_SIGNATURE = """format('%%I(%%s)', p.proname, coalesce((SELECT string_agg(format_type(t, NULL), ', ' ORDER BY o)
       FROM unnest(p.proargtypes) WITH ORDINALITY AS argument (t, o)), ''))"""

_FOR_EVERYBODY = """EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
       WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE')"""

_FUNCTIONS = f"""
SELECT p.oid::int8, n.nspname, {_SIGNATURE}, p.proname, {_FOR_EVERYBODY},
       p.prosecdef, l.lanname, coalesce(pg_get_function_sqlbody(p.oid), p.prosrc), p.prosqlbody IS NOT NULL,
       (SELECT array_agg(coalesce(p.proargnames[o], '') ORDER BY o) FROM generate_series(1,
            coalesce(cardinality(p.proallargtypes), p.pronargs)) o
        WHERE p.proargmodes IS NULL OR p.proargmodes[o] IN ('i', 'b', 'v')),
       (SELECT array_agg(t::int8 ORDER BY o) FROM unnest(p.proargtypes) WITH ORDINALITY AS x (t, o)),
       p.proargdefaults::text,
       (SELECT substr(setting, length('search_path=') + 1) FROM unnest(p.proconfig) setting
        WHERE starts_with(setting, 'search_path=')),
       (SELECT e.extname FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
        WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
        AND d.refclassid = 'pg_extension'::regclass),
       (SELECT ARRAY[g.aggtransfn::int8, g.aggfinalfn::int8, g.aggcombinefn::int8, g.aggserialfn::int8,
            g.aggdeserialfn::int8, g.aggmtransfn::int8, g.aggminvtransfn::int8, g.aggmfinalfn::int8]
        FROM pg_aggregate g WHERE g.aggfnoid = p.oid)
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
WHERE p.oid = ANY(%(oids)s::oid[])
"""  # noqa: S608 -- constants of this module

_RESTRICTED = f"""
SELECT p.oid::int8, n.nspname, {_SIGNATURE} FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE p.oid < %(first)s AND p.proacl IS NOT NULL AND NOT {_FOR_EVERYBODY}
"""  # noqa: S608 -- constants of this module

_PUBLIC = """
SELECT EXISTS (SELECT FROM aclexplode(c.relacl) a WHERE a.grantee = 0 AND a.privilege_type = 'SELECT')
    OR CASE WHEN cardinality(%(columns)s::int[]) = 0 THEN open.columns <> 0 ELSE open.columns = open.asked END
FROM pg_class c, LATERAL (
    SELECT count(*) FILTER (WHERE EXISTS (SELECT FROM aclexplode(t.attacl) a
        WHERE a.grantee = 0 AND a.privilege_type = 'SELECT')) AS columns, count(*) AS asked
    FROM pg_attribute t WHERE t.attrelid = c.oid
    AND (cardinality(%(columns)s::int[]) = 0 OR t.attnum = ANY(%(columns)s::int[]))) open
WHERE c.oid = %(relation)s
"""

_ARE_OWN = """
SELECT (SELECT count(DISTINCT p.proname) = cardinality(%(functions)s::text[])
        AND bool_and(p.oid < %(first)s AND (p.proacl IS NULL OR EXISTS (
            SELECT FROM aclexplode(p.proacl) a WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE'))) IS NOT false
        FROM pg_proc p WHERE p.proname = ANY(%(functions)s::text[]))
   AND NOT EXISTS (SELECT FROM pg_operator WHERE oprname = ANY(%(operators)s::text[])
        AND oid >= %(first)s AND oprleft < %(first)s AND oprright < %(first)s)
   AND NOT EXISTS (SELECT FROM unnest(%(types)s::text[]) t (name)
        WHERE coalesce(to_regtype(quote_ident(t.name))::oid::int8, %(first)s) >= %(first)s)
   AND NOT EXISTS (SELECT FROM pg_cast
        WHERE oid >= %(first)s AND castsource < %(first)s AND casttarget < %(first)s)
   AND NOT EXISTS (SELECT FROM unnest(%(arguments)s::oid[]) t (oid) WHERE t.oid >= %(first)s)
   AND (%(relation)s::oid IS NULL OR NOT EXISTS (
        SELECT FROM pg_attribute a WHERE a.attrelid = %(relation)s::oid AND a.attnum > 0 AND NOT a.attisdropped
        AND a.atttypid >= %(first)s AND (%(columns)s::text[] IS NULL OR a.attname = ANY(%(columns)s::text[]))))
"""
"""Operators and casts are chosen by the types of what they are used on: on the server's own types they are the
server's own, unless somebody made another one for them."""

_DOMAIN_CHECKS = """
WITH RECURSIVE within (oid) AS (
    SELECT unnest(%(types)s::oid[])
    UNION
    SELECT part FROM within w JOIN pg_type t ON t.oid = w.oid,
    LATERAL (SELECT t.typbasetype WHERE t.typtype = 'd' UNION ALL SELECT t.typelem WHERE t.typelem <> 0
        UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid
        UNION ALL SELECT r.rngtypid FROM pg_range r WHERE r.rngmultitypid = t.oid
        UNION ALL SELECT a.atttypid FROM pg_attribute a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) p (part)
)
SELECT DISTINCT c.conbin::text FROM within w JOIN pg_constraint c ON c.contypid = w.oid WHERE c.contype = 'c'
"""

_INPUT_AND_OUTPUT = """
SELECT typinput::oid::int8 FROM pg_type WHERE oid = ANY(%(read)s::oid[])
UNION SELECT typoutput::oid::int8 FROM pg_type WHERE oid = ANY(%(written)s::oid[])
"""

_OPEN_SCHEMAS = """
SELECT n.nspname FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
WHERE a.grantee = 0 AND a.privilege_type = 'USAGE'
"""
