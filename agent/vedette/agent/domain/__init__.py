"""Decisions of the agent: values in, values out, no IO."""
