"""Access tokens of OAuth 2.0 authorization servers."""
