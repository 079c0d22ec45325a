"""Training, in a child process of its own: rows from a snapshot, a recipe's fit, conversion, proof, artefacts.

Nothing here is imported by the server; ``services.runs`` starts ``training.child`` and registers what it leaves.
"""
