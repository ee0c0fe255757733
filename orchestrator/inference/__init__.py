"""From SQL to the smallest grant under which it runs: asked of the database, or offline as far as that is sure."""
