"""Makes the Debian packages: ``build`` runs the whole, ``fill`` fills one package and has ``prove`` import it.

``build`` and ``fill`` run on Debian's own Python with nothing but its standard library.
"""
