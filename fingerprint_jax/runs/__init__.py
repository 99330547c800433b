"""A run: its directory, its config and the rows it sees."""
