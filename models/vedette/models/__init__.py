"""What a model is, for both sides: signed documents, feature schema and extraction, data profiles, verdicts.

Everything here is pure (values in, values out) and imports nothing of the agent or the controller.
"""
