"""The token endpoint and what belongs to it: OAuth 2.0 over the same tasks as every other way in."""
