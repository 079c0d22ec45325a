"""The Open Inference Protocol v2, for this appliance's programs."""
