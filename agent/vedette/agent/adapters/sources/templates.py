"""The exporters' templates on disk, so that a restart is not blind until they are sent again (minutes, by default)."""

from __future__ import annotations

import logging
from pathlib import Path

from vedette.agent.adapters.storage.files import FileTooLarge, read_file, replace_file
from vedette.agent.domain.errors import DiskFull
from vedette.models.flows.netflow import FlowDecoder
from vedette.models.flows.templates import Limits, NetflowError

logger = logging.getLogger(__name__)
_MAX_BYTES = Limits().saved_bytes


class TemplateFile:
    """What a decoder has learnt of its exporters. Losing it costs minutes of flows, so no failure here is an error."""

    def __init__(self, path: Path, decoder: FlowDecoder) -> None:
        self._path = path
        self._decoder = decoder
        self._saved = b""

    def load(self) -> None:
        """Give the decoder what was saved; what cannot be read is left."""
        try:
            self._saved = read_file(self._path, _MAX_BYTES)
            self._decoder.load_templates(self._saved)
        except FileNotFoundError:
            return
        except (OSError, FileTooLarge, NetflowError) as exc:
            logger.warning("saved templates are not used: %s", exc)

    def save(self) -> None:
        """Save what the decoder knows if that is news."""
        known = self._decoder.dump_templates()
        if known == self._saved:
            return
        try:
            replace_file(self._path, known, 0o600)
        except (OSError, DiskFull) as exc:
            logger.warning("templates are not saved: %s", exc)
            return
        self._saved = known
