"""A folder to start from, and what of the repository a package brings along."""
