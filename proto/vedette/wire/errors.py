"""The one error of what travels."""


class WireError(Exception):
    """A peer's message or text breaks its contract; the text names the field, the value and the limit."""
