"""The services of ``vedette.wire.v1``: convert, call, convert, return."""

import os

# grpcio has no option for the lowest TLS version. A list with no suite that fits our ECDSA certificates under TLS 1.2
# leaves only 1.3, whose suites the list does not govern. It is read once, so it must stand before grpc is imported.
os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES128-GCM-SHA256")
