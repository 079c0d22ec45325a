"""The machine: its facts, its unit, its users, what it can spare."""
