"""The embedded store: one SQLite database, one store class per concern."""
