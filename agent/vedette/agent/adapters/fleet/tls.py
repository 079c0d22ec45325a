"""How a sink proves whom it talks to."""

from __future__ import annotations

import ssl

from vedette.agent.settings import TlsFiles


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a context that checks certificate and host name and speaks TLS 1.2 or newer.

    Raises:
        OSError: A file cannot be read, or holds no certificate or key.
    """
    context = ssl.create_default_context(cafile=files.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if files.certificate is not None:
        context.load_cert_chain(files.certificate, files.key)
    return context
