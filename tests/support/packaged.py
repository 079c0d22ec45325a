"""``vedette-controller`` as on a packaged host: CONFIG is the packaged settings, ``nobody`` the service user.

Everything that a verb loads late is loaded before it gives root up, which a folder of a developer's tools may need.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vedette.controller import __main__, first_use, recovery, settings
from vedette.controller.adapters import service_user
from vedette.controller.adapters.pki import CertificateAuthority

if __name__ == "__main__":
    service_user.SERVICE_USER = "nobody"
    for module in (__main__, first_use, recovery, settings):
        module.DEFAULT_CONFIG = Path(sys.argv[1])  # type: ignore[attr-defined]
    CertificateAuthority.create("warm")  # cryptography loads parts of itself late
    "warm".encode("idna")  # the codec of host names, too
    sys.exit(__main__.main(sys.argv[2:]))
