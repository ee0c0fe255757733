"""One module for each revision of the schema; applied in order, never edited."""
