"""The YAML language: models, a loader that knows file, line and column, expressions, JSON Schema."""
