"""The one version of the distribution; both sides report it."""

__version__ = "0.1.0"
