"""Decisions of the controller: values in, values out, no IO."""
