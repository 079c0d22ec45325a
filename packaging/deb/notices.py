"""Copyright and licences of what a package bundles, as Debian's machine-readable copyright file (DEP 5).

Everything comes from the wheels themselves: names, versions and declared licences from their metadata, the texts from
their licence files, complete. A distribution without any text fails unless its licence is one that Debian carries.

Source: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email import message_from_string
from email.message import Message
from pathlib import Path

_LEGAL = re.compile(r"(licen[cs]e|copying|notice|authors|thirdpartynotices)", re.IGNORECASE)
_HOLDER = re.compile(r"^\W*(?:portions )?copyright\b.*\b(?:19|20)\d\d\b.*$", re.IGNORECASE | re.MULTILINE)
_MOST_HOLDERS = 40
_COMMON = {"Apache 2.0": "Apache-2.0", "Apache-2.0": "Apache-2.0", "Apache License 2.0": "Apache-2.0"}
"""Declared names of licences whose texts are in Debian's /usr/share/common-licenses."""


class NoticeError(Exception):
    """A distribution does not say under which licence it is."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What must be said about one bundled distribution."""

    name: str
    version: str
    declared: str
    home: str
    holders: tuple[str, ...]
    places: tuple[str, ...]  # below site-packages
    texts: tuple[tuple[str, str], ...]  # file name and text


def is_legal(path: Path) -> bool:
    """Return whether a file below site-packages holds terms, not code."""
    return path.suffix in ("", ".txt", ".md", ".rst", ".APACHE", ".BSD", ".eigen", ".markdown-it") and bool(
        _LEGAL.match(path.name) or _LEGAL.search(path.stem) or "licenses" in path.parts
    )


def gather(site: Path) -> list[Notice]:
    """Return a notice for each bundled distribution but our own; to be called before anything is trimmed.

    Raises:
        NoticeError: One has neither a text nor a declared licence that Debian carries.
    """
    infos = (info for info in sorted(site.glob("*.dist-info")) if not info.name.startswith("vedette-"))
    return [_notice(info, site) for info in infos]


def _notice(info: Path, site: Path) -> Notice:
    metadata = message_from_string((info / "METADATA").read_text())
    files = [line.split(",")[0].strip('"') for line in (info / "RECORD").read_text().splitlines()]
    places = tuple(sorted({_place(name) for name in files} - {"", ".."}))
    legal = [Path(name) for name in sorted(files) if is_legal(Path(name)) and (site / name).is_file()]
    texts = {(site / path).read_text(errors="replace").strip(): path.name for path in legal}
    notice = Notice(
        name=metadata["Name"],
        version=metadata["Version"],
        declared=_declared(metadata),
        home=metadata.get("Home-page") or _project_url(metadata),
        holders=_holders("\n".join(texts), metadata),
        places=places,
        texts=tuple((name, text) for text, name in texts.items()),
    )
    if not notice.texts and notice.declared not in _COMMON:
        raise NoticeError(f"{notice.name} {notice.version} has no licence text and declares {notice.declared!r}")
    return notice


def _place(name: str) -> str:
    first, slash, _ = name.partition("/")
    return f"{first}/*" if slash and not first.endswith(".data") else ("" if first.endswith(".data") else first)


def _declared(metadata: Message) -> str:
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classified = [
        line.split(" :: ")[-1] for line in metadata.get_all("Classifier", []) if line.startswith("License ::")
    ]
    stated = str(metadata.get("License", "")).strip().splitlines()
    return stated[0] if stated and len(stated[0]) < 60 and len(stated) == 1 else ", ".join(classified) or "see its text"


def _project_url(metadata: Message) -> str:
    urls = [line.partition(",")[2].strip() for line in metadata.get_all("Project-URL", [])]
    return urls[0] if urls else ""


def _holders(texts: str, metadata: Message) -> tuple[str, ...]:
    found = dict.fromkeys(re.sub(r"\s+", " ", match.group()).strip(" *#/;-") for match in _HOLDER.finditer(texts))
    if found:
        return tuple(found)[:_MOST_HOLDERS]
    return (str(metadata.get("Author") or metadata.get("Author-email") or f"the authors of {metadata['Name']}"),)


def copyright_file(role: str, notices: list[Notice]) -> str:
    """Return the text of debian/copyright for one package."""
    site = f"usr/lib/vedette-{role}/lib/python3.11/site-packages"
    return "\n\n".join([_head(), *(_paragraph(notice, site) for notice in notices), _apache()]) + "\n"


def _head() -> str:
    return (
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        "Upstream-Name: vedette\n"
        "Comment:\n"
        " The libraries below are bundled as their projects built them. Each paragraph\n"
        " has the complete texts that came with one, also for parts that they bundle.\n\n"
        "Files: *\n"
        "Copyright: The Vedette maintainers\n"
        "License: Apache-2.0"
    )


def _paragraph(notice: Notice, site: str) -> str:
    lines = ["Files:", *(f" {site}/{place}" for place in notice.places)]
    lines += ["Copyright:", *(f" {holder}" for holder in notice.holders)]
    if notice.texts:
        lines += [f"License: {notice.name.lower()}-terms"]
        for name, text in notice.texts:
            lines += [f" [{name}]", " .", *_indented(text), " ."]
        lines.pop()
    else:
        lines += [f"License: {_COMMON[notice.declared]}"]
    lines += [
        "Comment:",
        f" {notice.name} {notice.version}; its metadata declares: {notice.declared}",
        f" {notice.home}",
    ]
    return "\n".join(line for line in lines if line.strip())


def _indented(text: str) -> list[str]:
    return [f" {line.rstrip()}" if line.strip() else " ." for line in text.expandtabs().splitlines()]


def _apache() -> str:
    return (
        "License: Apache-2.0\n"
        ' Licensed under the Apache License, Version 2.0 (the "License"); you may not use\n'
        " these files except in compliance with the License.\n"
        " .\n"
        " Unless required by applicable law or agreed to in writing, software distributed\n"
        ' under the License is distributed on an "AS IS" BASIS, WITHOUT WARRANTIES OR\n'
        " CONDITIONS OF ANY KIND, either express or implied. See the License for the\n"
        " specific language governing permissions and limitations under the License.\n"
        " .\n"
        " On Debian systems the complete text of the Apache License, Version 2.0 is in\n"
        " /usr/share/common-licenses/Apache-2.0."
    )
