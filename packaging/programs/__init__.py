"""What the packages say of the programs: manual pages, completions and default settings, from their own parsers.

``surface`` reads the parsers and the settings tables; ``manuals``, ``completions`` and ``defaults`` are commands that
write files from it. Nothing here is installed; what is said in two places is said by the programs and read here.
"""
