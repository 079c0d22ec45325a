"""Generated code for the Open Inference Protocol v2; edit the ``.proto`` files and run ``make protos``."""
