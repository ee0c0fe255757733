"""What authors of policies need: a starter, checks with places, tests in Rego and what these have been through."""
