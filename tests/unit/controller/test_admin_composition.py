import ast
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import pytest

from vedette.controller.adapters.grpc.admin import METHODS, compose, methods_of
from vedette.controller.adapters.grpc.admin_files import AdminFiles
from vedette.controller.adapters.grpc.admin_fleet import AdminFleet
from vedette.controller.adapters.grpc.admin_ml import AdminMl
from vedette.controller.adapters.grpc.admin_rollout import AdminRollout
from vedette.controller.adapters.grpc.errors import STATUS_OF, public_error
from vedette.controller.domain import errors
from vedette.models.documents import DocumentError
from vedette.wire.errors import WireError


class Tokens:
    async def CreateToken(self, request: Any, context: Any) -> str:  # noqa: N802
        return "made"


async def test_each_part_serves_its_own_verbs():
    servicer: Any = compose(Tokens())
    assert await servicer.CreateToken(None, None) == "made"
    assert methods_of(Tokens()) == ("CreateToken",)
    assert all(hasattr(servicer, name) for name in METHODS)


def test_a_verb_served_twice_is_a_mistake_in_the_wiring():
    with pytest.raises(TypeError, match="CreateToken"):
        compose(Tokens(), Tokens())


KINDS = [item for item in vars(errors).values() if isinstance(item, type) and item is not errors.ControllerError]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_status_a_code_and_three_lines(kind: type[errors.ControllerError]):
    status, text, code = public_error(kind("some-code", "what", "why 3 of 2", "do this"))
    assert status is STATUS_OF[kind]
    assert text == "what\nwhy 3 of 2\ndo this"
    assert code == "some-code"


def test_an_error_of_a_room_is_told_as_the_nearest_of_its_kinds():
    class Narrower(errors.Refused): ...

    class Foreign(errors.ControllerError): ...

    assert public_error(Narrower("a", "b"))[0] is grpc.StatusCode.FAILED_PRECONDITION
    assert public_error(Foreign("a", "b"))[0] is grpc.StatusCode.INTERNAL


def test_errors_of_peers_name_value_and_limit_and_unforeseen_ones_say_nothing():
    assert public_error(WireError("x is 9, limit 8"))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert "x is 9, limit 8" in public_error(WireError("x is 9, limit 8"))[1]
    assert public_error(DocumentError("y"))[2] == "bad-document"
    assert "secret" not in public_error(KeyError("secret"))[1]


@pytest.mark.parametrize("character", ["x", "%", "\n", "é", "😀", "\ud800"])
def test_an_error_of_any_length_and_script_fits_into_a_header(character: str):
    _, text, _ = public_error(errors.InvalidInput("c", character * 20_000))
    assert len(text) > 0
    assert len(quote(text, safe=" !#$&'()*+,/:;=?@[]<>{}|~`^\"\\-._", errors="replace")) <= 6000


def test_every_verb_is_served_by_exactly_one_part():
    parts = (AdminFiles, AdminFleet, AdminMl, AdminRollout)
    assert sorted(name for part in parts for name in METHODS if hasattr(part, name)) == sorted(METHODS)


def test_every_code_is_in_the_docs():
    """Codes are the first argument of our errors, wherever they are made; the CLI has errors of its own."""
    kinds = {kind.__name__ for kind in KINDS}
    sources = [path for path in Path(errors.__file__).parents[1].rglob("*.py") if path.parent.name != "cli"]
    calls = [node for path in sources for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    codes = {call.args[0].value for call in calls if _name(call) in kinds and _is_text(call)}
    documented = (Path(__file__).parents[3] / "docs" / "errors.md").read_text()
    assert len(codes) > 80
    assert sorted(code for code in codes if f"| `{code}` |" not in documented) == []


def _name(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def _is_text(call: ast.Call) -> bool:
    return bool(call.args) and isinstance(call.args[0], ast.Constant)
