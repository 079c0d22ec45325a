"""Generated code for protocol version 1; edit the ``.proto`` files and run ``make protos``."""
