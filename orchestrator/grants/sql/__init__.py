"""What a statement does, and the one door to PostgreSQL's parser."""
