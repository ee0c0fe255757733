"""What is stored: tables, encoding, chain, schema revisions, connections."""
