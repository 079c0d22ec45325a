"""Where rows come from: export datagrams, logs of other programs, the host itself."""
