"""The settings files of the packages say what the programs' own tables say, and change nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from programs.defaults import FILES, settings_file
from vedette.models.toml_settings import parse_settings

ETC = Path(__file__).parents[3] / "packaging/etc"


@pytest.mark.parametrize("name", FILES)
def test_the_packaged_settings_are_those_of_the_program(name: str):
    again = "the settings changed: run packaging/defaults packaging/etc"
    assert (ETC / name).read_text() == settings_file(*FILES[name]), again


@pytest.mark.parametrize("name", FILES)
def test_the_packaged_settings_change_nothing(name: str):
    options = FILES[name][1]
    assert parse_settings((ETC / name).read_text(), options, where=name) == {it.key: it.default for it in options}


@pytest.mark.parametrize("name", FILES)
def test_each_key_may_be_set_by_taking_away_its_mark(name: str):
    options = FILES[name][1]
    edited = re.sub(r"^#(?! )", "", (ETC / name).read_text(), flags=re.MULTILINE)
    assert len(edited) == len((ETC / name).read_text()) - len(options)
    assert parse_settings(edited, options, where=name) == {it.key: it.default for it in options}
