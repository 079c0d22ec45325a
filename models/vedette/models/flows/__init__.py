"""Network flows: reading export datagrams, records, biflows and the features that training and agents share.

Rules of this room: bytes and arrays in, arrays out; no sockets, no files (``captures`` reads bytes it is given), no
wall clock. Everything is numpy over whole batches; the only Python loops run per datagram or per set, never per record.
"""
