"""The program ``vedette-agent``."""

from __future__ import annotations

import os
import sys

# grpcio has no option for the least TLS version. With a list that holds no suite for our ECDSA certificates TLS 1.2 is
# refused and 1.3, which the list does not govern, works (measured with grpcio 1.85). Read when grpc is loaded.
_NO_TLS_1_2 = "ECDHE-RSA-AES128-GCM-SHA256"

# What grpc logs of a proxy that refuses comes at every try, beside the error that says the same to whoever must act.
_NO_LOG_OF_ITS_OWN = "NONE"


def main() -> int:
    """Run the command line and return its exit code."""
    os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", _NO_TLS_1_2)
    os.environ.setdefault("GRPC_VERBOSITY", _NO_LOG_OF_ITS_OWN)
    from vedette.agent.cli import run_command

    return run_command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
