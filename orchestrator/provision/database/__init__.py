"""A target database: roles, privileges, row limits and functions, as its administrator."""
