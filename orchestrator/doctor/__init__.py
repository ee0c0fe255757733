"""What is wrong with an installation: looked at before anything runs, and nothing changed."""
