"""Wiring of single rooms of the agent: part of ``app``, a file for each room."""
