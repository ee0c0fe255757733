"""Functions in C whose needs the catalog does not tell: what PostgreSQL's own, and those of its extensions, look at.

Of the functions that PostgreSQL brings along most compute and no more. Those that run a text, look up a name, or check
something else than EXECUTE are listed here by what they do (PostgreSQL manual, chapters 9 and F; `pg_proc.dat`).
"""

from __future__ import annotations

RUN_A_TEXT = frozenset(
    """
    query_to_xml query_to_xmlschema query_to_xml_and_xmlschema table_to_xml table_to_xmlschema
    table_to_xml_and_xmlschema schema_to_xml schema_to_xmlschema schema_to_xml_and_xmlschema database_to_xml
    database_to_xmlschema database_to_xml_and_xmlschema cursor_to_xml cursor_to_xmlschema ts_stat currtid2
    """.split()  # noqa: SIM905 -- a list of names reads best as one
)
"""They run a text or read a table that is named in one, as whoever calls them."""

RUN_A_QUERY_OF_TWO = frozenset({"ts_rewrite"})
"""With two arguments the second is a query."""

LARGE_OBJECTS = frozenset(
    """
    lo_open lo_get lo_put lo_unlink lo_truncate lo_truncate64 lo_export loread lowrite lo_lseek lo_lseek64 lo_tell
    lo_tell64 lo_from_bytea lo_import lo_create lo_creat
    """.split()  # noqa: SIM905
)
"""Each large object has privileges of its own, which no grant declares."""

OF_AN_OWNER = frozenset(
    """
    brin_summarize_new_values brin_summarize_range brin_desummarize_range gin_clean_pending_list
    pg_prewarm pg_cancel_backend pg_terminate_backend pg_clear_relation_stats pg_restore_relation_stats
    pg_clear_attribute_stats pg_restore_attribute_stats pg_get_sequence_data pg_get_object_address
    """.split()  # noqa: SIM905
)
"""They look at what else the caller may do with the object, or whose it is."""

OF_A_PREDEFINED_ROLE = frozenset(
    """
    pg_read_file pg_read_binary_file pg_stat_file pg_ls_dir pg_logical_slot_get_changes pg_logical_slot_peek_changes
    pg_logical_slot_get_binary_changes pg_logical_slot_peek_binary_changes pg_create_logical_replication_slot
    pg_create_physical_replication_slot pg_drop_replication_slot pg_replication_slot_advance
    pg_copy_logical_replication_slot pg_copy_physical_replication_slot
    """.split()  # noqa: SIM905
)
"""Beside EXECUTE they ask for a role of the server's or an attribute of the login, which no step has."""

NAMES_ARE_LOOKED_UP = frozenset(
    """
    to_regclass to_regproc to_regprocedure to_regoper to_regoperator to_regtype to_regtypemod to_regcollation
    has_table_privilege has_column_privilege has_any_column_privilege has_sequence_privilege has_function_privilege
    has_type_privilege pg_get_serial_sequence pg_input_is_valid pg_input_error_info
    """.split()  # noqa: SIM905
)
"""They look up a name that is in a text: whoever calls them needs USAGE on its schema."""

SEQUENCES = {"nextval": "usage", "currval": "usage", "setval": "update", "lastval": "usage"} | {
    "pg_sequence_last_value": "usage",
    "pg_sequence_parameters": "usage",
}
"""What each needs on its sequence."""

COMPUTING_EXTENSIONS = frozenset(
    """
    bool_plperl bloom btree_gin btree_gist citext cube dict_int dict_xsyn earthdistance fuzzystrmatch hstore intarray
    isn jsonb_plperl ltree moddatetime pg_trgm pgcrypto seg tsm_system_rows tsm_system_time unaccent uuid-ossp vector
    """.split()  # noqa: SIM905
)
"""Extensions whose functions in C look at nothing but their arguments."""

QUIET_TRIGGERS = frozenset(
    {"tsvector_update_trigger", "tsvector_update_trigger_column", "suppress_redundant_updates_trigger"}
)
"""PostgreSQL's own trigger functions, which change the row and look at nothing else."""

SPECIAL = (
    RUN_A_TEXT
    | RUN_A_QUERY_OF_TWO
    | LARGE_OBJECTS
    | OF_AN_OWNER
    | OF_A_PREDEFINED_ROLE
    | NAMES_ARE_LOOKED_UP
    | SEQUENCES.keys()
    | {"regclass"}
)
"""All of PostgreSQL's own that are to be looked at."""
