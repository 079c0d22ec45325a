"""The whole loop on one machine: real programs, real export datagrams, nothing left behind.

The demo does what a person would do, with the same commands, and shows each of them; it has no other way in.
``programs`` starts and stops processes, ``fleet`` sets up a controller and agents, ``replay`` sends recorded datagrams,
``story`` is what happens in which order.
"""
