"""Everything of the agent that touches the outside: processes, files, sockets, the database."""
