"""Settings files of both daemons: one table of keys drives reading, checking, ``--help`` and the docs.

A part declares its :class:`Option` table; :func:`load_settings` reads a TOML file against it. Rules: every key has a
default; an unknown key is an error that names the nearest known one; a wrong type or range names value and limit. The
file's size is limited before it is read.
"""

from __future__ import annotations

import difflib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vedette.models.errors import ModelsError

MAX_FILE_BYTES = 1024 * 1024

_MOST_KEY = 128
_MOST_FLOAT = sys.float_info.max
_MOST_SHOWN = 200  # characters of a wrong value in an error
_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE_KIND = 'bytes, or a size such as "512MiB"'
_SIZE = re.compile(r"\s*(\d{1,40})\s*([A-Za-z]*)\s*")


class SettingsError(ModelsError):
    """The settings file must be mended by whoever wrote it.

    Args:
        what: What is wrong, with the file and the key.
        why: The value and the limit.
        remedy: What to write instead; may be empty.
    """

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__("; ".join(part for part in (what, why, remedy) if part))
        self.what = what
        self.why = why
        self.remedy = remedy


class WrongValue(ValueError):
    """A value is of a wrong type or out of range; the text continues "KEY …" and names value and limit."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of value. ``parse`` returns the value or raises WrongValue."""

    name: str
    parse: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Option:
    """One key, dotted as in TOML tables: ``source.netflow.listen``. ``default`` is used as it stands, unparsed."""

    key: str
    kind: Kind
    default: Any
    text: str


def text(*, most: int = 4096) -> Kind:
    """Return the kind of a text of at most ``most`` characters."""

    def parse(raw: Any) -> str:
        if not isinstance(raw, str):
            raise WrongValue(f"is {_shown(raw)}, expected a text in quotes")
        if len(raw) > most:
            raise WrongValue(f"is {len(raw)} characters, limit {most}")
        if "\0" in raw:  # no file, address or name has one, and every call of the system refuses it
            raise WrongValue(f"is {_shown(raw)}, a NUL character is not allowed")
        return raw

    return Kind("text", parse)


def texts(*, most: int = 64) -> Kind:
    """Return the kind of a list of at most ``most`` texts; it becomes a tuple."""

    def parse(raw: Any) -> tuple[str, ...]:
        if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
            raise WrongValue(f'is {_shown(raw)}, expected a list of texts: ["a", "b"]')
        if len(raw) > most:
            raise WrongValue(f"has {len(raw)} entries, limit {most}")
        return tuple(raw)

    return Kind("list of texts", parse)


def path() -> Kind:
    """Return the kind of a file or folder name; it becomes a Path."""
    inner = text()

    def parse(raw: Any) -> Path:
        if not inner.parse(raw):
            raise WrongValue(f"is {_shown(raw)}, expected the name of a file or folder")
        return Path(raw)

    return Kind("path", parse)


def integer(*, least: int = 0, most: int = 2**63 - 1) -> Kind:
    """Return the kind of a whole number within limits."""

    def parse(raw: Any) -> int:
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise WrongValue(f"is {_shown(raw)}, expected a whole number")
        return int(_within(raw, least, most))

    return Kind(f"whole number, {least} to {most}" if most < 2**63 - 1 else f"whole number, at least {least}", parse)


def number(*, least: float = 0.0, most: float = float("inf")) -> Kind:
    """Return the kind of a number within limits; it becomes a float."""

    def parse(raw: Any) -> float:
        if isinstance(raw, bool) or not isinstance(raw, int | float) or raw != raw:  # noqa: PLR0124 - nan only
            raise WrongValue(f"is {_shown(raw)}, expected a number")
        return float(_within(raw, least, min(most, _MOST_FLOAT) if isinstance(raw, int) else most))

    return Kind(f"number, {least:g} to {most:g}" if most != float("inf") else f"number, at least {least:g}", parse)


def boolean() -> Kind:
    """Return the kind of true or false."""

    def parse(raw: Any) -> bool:
        if not isinstance(raw, bool):
            raise WrongValue(f"is {_shown(raw)}, expected true or false")
        return raw

    return Kind("true or false", parse)


def choice(*words: str) -> Kind:
    """Return the kind of one of several words."""

    def parse(raw: Any) -> str:
        if raw not in words:
            hint = _suggestion(raw, words) if isinstance(raw, str) else ""
            raise WrongValue(f"is {_shown(raw)}, expected one of {', '.join(words)}{hint}")
        return str(raw)

    return Kind(" or ".join(f'"{word}"' for word in words), parse)


def size(*, least: int = 0, most: int = 2**63 - 1) -> Kind:
    """Return the kind of a number of bytes: a whole number, or a text such as ``"512MiB"``."""

    def parse(raw: Any) -> int:
        return int(_within(parse_size(raw), least, most, format_size))

    return Kind(_SIZE_KIND, parse)


def address(*, optional: bool = False, default_port: int | None = None) -> Kind:
    """Return the kind of a ``HOST:PORT``; IPv6 hosts stand in brackets.

    Args:
        optional: ``""`` is allowed, means off and becomes None.
        default_port: The port when none is written; required when None.
    """

    def parse(raw: Any) -> str | None:
        if optional and raw == "":
            return None
        host, port = parse_address(raw, default_port)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    return Kind('HOST:PORT, "" is off' if optional else "HOST:PORT", parse)


def addresses(*, most: int = 16, default_port: int | None = None) -> Kind:
    """Return the kind of a list of ``HOST:PORT``; it becomes a tuple."""
    one, several = address(default_port=default_port), texts(most=most)

    def parse(raw: Any) -> tuple[str, ...]:
        return tuple(one.parse(item) for item in several.parse(raw))

    return Kind("list of HOST:PORT", parse)


def parse_address(raw: Any, default_port: int | None = None) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` or ``[IPV6]:PORT``.

    Raises:
        WrongValue: It is neither; the text says what it is.
    """
    match = re.fullmatch(
        r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s\0-\x20\x7f:\[\]/]{1,253}))(?::(\d{1,5}))?",
        raw if isinstance(raw, str) else "",
    )
    port = int(match[3]) if match and match[3] else default_port
    if match is None or port is None:
        raise WrongValue(f"is {_shown(raw)}, expected HOST:PORT or [IPV6]:PORT")
    if port > 65535:
        raise WrongValue(f"is {_shown(raw)}, a port is 0 to 65535")
    host = match[1] or match[2]
    try:
        host.encode("idna")  # as every resolver does, and no caller expects to fail: a..b has an empty label
    except UnicodeError as exc:
        raise WrongValue(f"is {_shown(raw)}, whose host can be no name: {exc}") from exc
    return host, port


def parse_size(raw: Any) -> int:
    """Return bytes of ``"512MiB"``, ``"10 GB"`` or a whole number.

    Raises:
        WrongValue: It is none of these.
    """
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    match = _SIZE.fullmatch(raw) if isinstance(raw, str) else None
    if match is None or match[2] not in _UNITS:
        raise WrongValue(
            f'is {_shown(raw)}, expected bytes or a size such as "512MiB" ({", ".join(u for u in _UNITS if u)})'
        )
    return int(match[1]) * _UNITS[match[2]]


def format_size(count: int) -> str:
    """Return bytes as people write them: ``512MiB``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count >= _UNITS[unit] and count % _UNITS[unit] == 0:
            return f"{count // _UNITS[unit]}{unit}"
    return f"{count}B"


def load_settings(
    file: Path, options: Sequence[Option], *, instead_of_defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the value of every key of ``options``, read from a TOML file.

    Args:
        file: The TOML file.
        options: The keys there are.
        instead_of_defaults: Values of keys that the file does not set; the options' defaults when None.

    Raises:
        SettingsError: The file cannot be read, is not TOML, or a key is unknown, of a wrong type or out of range.
    """
    try:
        with file.open("rb") as source:
            data = source.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise SettingsError(f"settings file {file} cannot be read", exc.strerror or str(exc)) from exc
    if len(data) > MAX_FILE_BYTES:
        raise SettingsError(f"settings file {file} is too large", f"over {MAX_FILE_BYTES} bytes")
    try:
        return parse_settings(data.decode(), options, where=str(file), instead_of_defaults=instead_of_defaults)
    except UnicodeDecodeError as exc:
        raise SettingsError(f"settings file {file} is not UTF-8", f"byte {exc.start}: {exc.reason}") from exc


def parse_settings(
    source: str, options: Sequence[Option], *, where: str, instead_of_defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the value of every key of ``options``, read from TOML text; ``where`` names its origin in errors.

    Raises:
        SettingsError: As :func:`load_settings`.
    """
    try:
        tree = tomllib.loads(source)
    except (ValueError, RecursionError) as exc:  # tomllib lets int's own refusal of endless digits pass
        raise SettingsError(f"settings file {where} is not TOML", str(exc)[:_MOST_SHOWN]) from exc
    known = {option.key: option for option in options}
    values = {option.key: option.default for option in options} | dict(instead_of_defaults or {})
    for key, raw in _leaves(tree, known):
        if key not in known:
            raise _unknown(key, known, where)
        try:
            values[key] = known[key].kind.parse(raw)
        except WrongValue as exc:
            raise SettingsError(f"{where}: {key} {exc}", remedy=f"{key}: {known[key].text}") from exc
    return values


def describe_settings(options: Sequence[Option]) -> str:
    """Return the keys as help text: key, default, kind, meaning."""
    lines = []
    for option in options:
        lines += [f"  {option.key} = {_toml(option.default)}", f"      {option.text} ({option.kind.name})"]
    return "\n".join(lines)


def shown_default(option: Option) -> str:
    """Return the default of a key as a person would write it in the file: ``"64MiB"``."""
    is_size = option.kind.name == _SIZE_KIND and isinstance(option.default, int)
    return _toml(format_size(option.default) if is_size else option.default)


def _leaves(tree: Mapping[str, Any], known: Mapping[str, Option], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in tree.items():
        key = prefix + name
        if len(key) > _MOST_KEY:
            yield key, item  # no such key; and tables in tables without end are not gone into
        elif isinstance(item, dict) and key not in known and item:
            yield from _leaves(item, known, key + ".")
        elif isinstance(item, dict) and any(other.startswith(key + ".") for other in known):
            continue  # a table header with nothing below it sets nothing
        else:
            yield key, item


def _unknown(key: str, known: Mapping[str, Option], where: str) -> SettingsError:
    key = key if len(key) <= _MOST_KEY else f"{key[:_MOST_KEY]}…"
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or _same_last_word(key, known)
    remedy = f"did you mean {nearest[0]}?" if nearest else f"known keys: {', '.join(known)}"
    return SettingsError(f"{where}: unknown key {key if key.isprintable() else repr(key)}", remedy=remedy)


def _same_last_word(key: str, known: Mapping[str, Option]) -> list[str]:
    return [other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2]][:1]


def _suggestion(word: str, words: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _within(item: Any, least: Any, most: Any, show: Callable[[Any], str] = str) -> Any:
    if item < least or item > most:
        side = f"at least {show(least)}" if item < least else f"at most {show(most)}"
        raise WrongValue(f"is {_shown(item, show)}, allowed is {side}")
    return item


def _shown(raw: Any, show: Callable[[Any], str] = repr) -> str:
    """Return a wrong value as an error may hold it."""
    try:
        text = show(raw)
    except ValueError:  # of a number beyond the digits that Python writes; hexadecimal ones are read
        return "a number of some thousand digits"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _toml(item: Any) -> str:
    match item:
        case None:
            return '""'
        case bool():
            return str(item).lower()
        case int() | float():
            return str(item)
        case tuple() | list():
            return "[" + ", ".join(_toml(part) for part in item) + "]"
        case _:
            return '"' + str(item).replace("\\", "\\\\").replace('"', '\\"') + '"'
