from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette.models import toml_settings as toml

OPTIONS = (
    toml.Option("name", toml.text(most=8), "edge", "What people call it."),
    toml.Option("controller", toml.addresses(default_port=7443), (), "Where to go."),
    toml.Option("source.netflow.listen", toml.address(), "0.0.0.0:2055", "Where exporters send."),
    toml.Option("metrics.listen", toml.address(optional=True), "127.0.0.1:9464", "Metrics."),
    toml.Option("budget.memory", toml.size(least=2**20, most=2**40), 2**29, "Memory."),
    toml.Option("budget.cpu_percent", toml.integer(least=1, most=6400), 100, "CPU."),
    toml.Option("telemetry.interval_s", toml.number(least=0.1, most=3600), 60.0, "Window."),
    toml.Option("sink.json.emit", toml.choice("flagged", "all"), "flagged", "What to write."),
    toml.Option("sink.json.path", toml.path(), Path("/var/log/v.jsonl"), "Where to write."),
    toml.Option("debug", toml.boolean(), False, "More."),
)


def read(source: str) -> dict[str, object]:
    return toml.parse_settings(source, OPTIONS, where="a.toml")


def test_a_number_beyond_all_floats_is_out_of_range_and_shown_in_a_line():
    with pytest.raises(toml.WrongValue, match="allowed is at most") as refused:
        toml.number().parse(10**400)
    assert len(str(refused.value)) < 300


def test_empty_file_gives_every_default():
    assert read("") == {option.key: option.default for option in OPTIONS}


def test_written_values_replace_defaults():
    got = read(
        'name="x"\ndebug=true\ncontroller=["c.example", "[::1]:9"]\n[metrics]\nlisten=""\n[budget]\nmemory="1GiB"\n'
        '[telemetry]\ninterval_s=5\n[sink.json]\nemit="all"\npath="/tmp/v"\n[source.netflow]\n'
    )
    assert got["controller"] == ("c.example:7443", "[::1]:9")
    assert got["metrics.listen"] is None
    assert got["budget.memory"] == 2**30
    assert got["telemetry.interval_s"] == 5.0
    assert got["sink.json.path"] == Path("/tmp/v")
    assert (got["name"], got["debug"], got["sink.json.emit"]) == ("x", True, "all")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nme='x'", "unknown key nme; did you mean name?"),
        ("[budget]\nmemroy='1GiB'", "unknown key budget.memroy; did you mean budget.memory?"),
        ("cpu_percent=3", "did you mean budget.cpu_percent?"),
        ("[zzzzzzzz]\nqqqqqqqq=1", "known keys: name, controller"),
        ("name=3", "name is 3, expected a text"),
        ("name='123456789'", "name is 9 characters, limit 8"),
        ("name={a=1}", "name is {'a': 1}, expected a text"),
        ("debug=1", "debug is 1, expected true or false"),
        ("[budget]\nmemory='12 parsecs'", "budget.memory is '12 parsecs', expected bytes or a size"),
        ("[budget]\nmemory='1KiB'", "budget.memory is 1KiB, allowed is at least 1MiB"),
        ("[budget]\ncpu_percent=0", "budget.cpu_percent is 0, allowed is at least 1"),
        ("[budget]\ncpu_percent=true", "budget.cpu_percent is True, expected a whole number"),
        ("[telemetry]\ninterval_s=nan", "telemetry.interval_s is nan, expected a number"),
        ("[telemetry]\ninterval_s=inf", "telemetry.interval_s is inf, allowed is at most 3600"),
        ("[sink.json]\nemit='flaged'", "did you mean flagged?"),
        ("[sink.json]\npath=''", "expected the name of a file"),
        ("[source.netflow]\nlisten=':1'", "expected HOST:PORT"),
        ("[source.netflow]\nlisten='a:70000'", "a port is 0 to 65535"),
        ("[source.netflow]\nlisten=''", "expected HOST:PORT"),
        ("controller='a:1'", "expected a list of texts"),
        ("source=3", "unknown key source"),
        ("a = = 3", "is not TOML"),
        ("a=" + "[" * 5000, "is not TOML"),
    ],
)
def test_wrong_settings_name_the_key_the_value_and_the_limit(source: str, says: str):
    with pytest.raises(toml.SettingsError, match=r"a\.toml") as caught:
        read(source)
    assert says in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_as_settings(source: str):
    try:
        read(source)
    except toml.SettingsError:
        return


@given(st.integers(0, 2**62))
def test_format_size_is_the_inverse_of_parse_size(count: int):
    assert toml.parse_size(toml.format_size(count)) == count


def test_files_that_cannot_be_read_are_settings_errors(tmp_path: Path):
    (tmp_path / "big").write_bytes(b"#" * (toml.MAX_FILE_BYTES + 1))
    (tmp_path / "bytes").write_bytes(b"\xff")
    for name, says in (("absent", "cannot be read"), ("big", "too large"), ("bytes", "not UTF-8")):
        with pytest.raises(toml.SettingsError, match=says):
            toml.load_settings(tmp_path / name, OPTIONS)


def test_help_names_every_key_with_its_default():
    shown = toml.describe_settings(OPTIONS)
    assert all(f"  {option.key} = " in shown for option in OPTIONS)
    assert read("\n".join(_as_dotted(shown))) == {**read(""), "metrics.listen": "127.0.0.1:9464"}


def _as_dotted(shown: str) -> list[str]:
    return [line.strip() for line in shown.splitlines() if line.startswith("  ") and line[2] != " "]
