"""The schema's history, as Alembic revisions that are written by hand."""
