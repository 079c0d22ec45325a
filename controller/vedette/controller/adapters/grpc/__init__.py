"""The services of ``vedette.wire.v1``: convert, call, convert, return."""
