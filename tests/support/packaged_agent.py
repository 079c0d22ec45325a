"""``vedette-agent`` as on a packaged host: CONFIG is the packaged settings, ``nobody`` the service user,
USER who asks.

Everything that a verb loads late is loaded before it gives root up, which a folder of a developer's tools may need.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from vedette.agent import app, cli, settings
from vedette.agent.adapters import clock
from vedette.agent.adapters.fleet import bundle_import, enrolment, telemetry_export
from vedette.agent.adapters.host import facts, service_user, unit
from vedette.agent.adapters.telling import doctor, progress

if __name__ == "__main__":
    service_user.SERVICE_USER = "nobody"
    for module in (cli, service_user, settings):
        module.DEFAULT_FILE = Path(sys.argv[1])  # type: ignore[attr-defined]
    unit._SYSTEMD_RUNS = Path("/nonexistent")
    # What the libraries load late.
    name = x509.Name([])
    x509.CertificateSigningRequestBuilder().subject_name(name).sign(
        ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()
    )
    app, bundle_import, clock, doctor, enrolment, facts, progress, telemetry_export  # noqa: B018 - loaded
    "warm".encode("idna")
    os.setresuid(*[int(sys.argv[2])] * 3)
    sys.exit(cli.run_command(sys.argv[3:]))
