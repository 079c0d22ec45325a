"""The context file of an admin: where the controller is, whom to believe there, and who asks.

``vedette-controller init`` writes one; ``vedette --context FILE`` reads it. It holds a private key, works wherever
it is copied, and is as good as a password.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from vedette.models import toml_settings as toml

_PEM_CHARACTERS = 16384
_OPTIONS = (
    toml.Option("name", toml.text(most=128), "", "Of the admin"),
    toml.Option("address", toml.address(default_port=7443), "", "HOST:PORT of the controller's mTLS port"),
    toml.Option("ca", toml.text(most=_PEM_CHARACTERS), "", "PEM of the certificate authority to believe"),
    toml.Option("certificate", toml.text(most=_PEM_CHARACTERS), "", "PEM of the admin's certificate"),
    toml.Option("key", toml.text(most=_PEM_CHARACTERS), "", "PEM of its private key"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminContext:
    """What a program needs to act as an admin."""

    name: str
    address: str
    ca: str
    certificate: str
    key: str = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> AdminContext:
        """Return the context of a file.

        Raises:
            SettingsError: The file cannot be read, or a key is unknown, wrong or missing.
        """
        found = toml.load_settings(path, _OPTIONS)
        missing = [key for key, value in found.items() if not value]
        if missing:
            remedy = "vedette-controller init writes a whole one"
            raise toml.SettingsError(f"context file {path} lacks {', '.join(missing)}", remedy=remedy)
        return cls(**found)

    def to_toml(self) -> str:
        """Return the text of the file."""
        lines = ["# An admin of a Vedette controller. It holds a private key: keep it as you keep a password."]
        for item in fields(self):
            value = getattr(self, item.name)
            quoted = f'"""\n{value}"""' if "\n" in value else f'"{value}"'
            lines.append(f"{item.name} = {quoted}")
        return "\n".join(lines) + "\n"
