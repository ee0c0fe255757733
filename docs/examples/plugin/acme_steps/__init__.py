"""Steps and policies of Acme's."""
