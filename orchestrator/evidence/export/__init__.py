"""The history for other systems: as lines of JSON, as rows of a table, as events of OCSF."""
