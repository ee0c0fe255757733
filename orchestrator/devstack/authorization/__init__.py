"""A real OAuth 2.0 authorization server (npm's `oidc-provider`) for the embedded stack and the tests."""
