"""The workflow file, as data. The JSON Schema is generated from these models."""
