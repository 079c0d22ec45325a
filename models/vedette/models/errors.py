"""The base of every error of ``vedette.models``: whoever made the document, file or packet must mend it."""


class ModelsError(Exception):
    """Something read from outside does not say what it must; the message gives the value and the limit."""
