"""Write the settings files that the packages install: ``packaging/defaults OUTDIR``.

Every key stands there with its meaning, commented out with its default: a file in which nothing was changed means what
the program means, also after an upgrade that changes a default. Table headers are not commented out, so that a key
whose ``#`` is taken away stands in its table.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from programs.surface import tables_of
from vedette.agent import nft_helper
from vedette.agent import settings as agent_settings
from vedette.controller import settings as controller_settings
from vedette.models.toml_settings import Option, shown_default

_HEAD = """\
# Settings of {program}. Each key is shown with its default; to set one, take away its # and change the value.
# They are read when the program starts: systemctl restart {program}
# Sizes may be written as "512MiB", addresses as "HOST:PORT" or "[IPV6]:PORT". All of it: man {program}.toml
"""
_LEARNT = """\
# What is not set here is as `vedette-controller init` was told (controller.toml in data_dir), else the default.
"""
_ALSO = {"vedette-controller": _LEARNT}
_HELPER_HEAD = """\
# Whom the agent may have blocked, and whom never: read by its privileged helper, which believes this file and not the
# agent; root alone may write it. Each key is shown with its default; to set one, take away its # and change the value.
# They are read when the helper starts: systemctl restart vedette-nft-helper
"""
_HEADS = {"vedette-nft-helper": _HELPER_HEAD}
FILES: dict[str, tuple[str, Sequence[Option]]] = {
    "agent.toml": ("vedette-agent", agent_settings.OPTIONS),
    "controller.toml": ("vedette-controller", controller_settings.OPTIONS),
    "nftables.toml": ("vedette-nft-helper", nft_helper.OPTIONS),
}


def main(arguments: Sequence[str]) -> int:
    """Write all files into a folder."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: packaging/defaults OUTDIR", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (program, options) in FILES.items():
        (folder / name).write_text(settings_file(program, options))
    return 0


def settings_file(program: str, options: Sequence[Option]) -> str:
    """Return a settings file in which every key is commented out."""
    lines = [_HEADS.get(program, _HEAD).format(program=program) + _ALSO.get(program, "")]
    for table, its in tables_of(options).items():
        lines += [f"[{table}]"] if table else []
        for option in its:
            lines += textwrap.wrap(_meaning(option), 100, initial_indent="# ", subsequent_indent="# ")
            lines += [f"#{option.key.rpartition('.')[2]} = {shown_default(option)}", ""]
    return "\n".join(lines)


def _meaning(option: Option) -> str:
    meaning = f"{option.text[:1].upper()}{option.text[1:]}."
    # How sizes are written stands once, at the top.
    return meaning if option.kind.name.startswith("bytes") else f"{meaning} ({option.kind.name})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
