"""Where a token, a key or a memory image must never be seen."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from vedette.wire.token import EnrolmentToken


async def enrol(daemon: Daemon, token: EnrolmentToken) -> tuple[int, str]:
    """Enrol with a token on standard input; return the exit code and all that was printed."""
    words = ("-m", "vedette.agent", "enroll", "--token", "-", "--verbose", "--config", str(daemon.config))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate(token.encode().encode())
    assert process.returncode is not None
    return process.returncode, said.decode()


@pytest.mark.parametrize("refuse", ["", "token-expired"])
async def test_a_tokens_secret_is_in_no_word_of_the_program_and_in_no_file(
    daemon: Daemon, controller: FakeController, refuse: str
) -> None:
    token = controller.token(refuse=refuse)
    code, said = await enrol(daemon, token)
    assert (code == 0) == (not refuse)
    assert controller.secrets_seen == [token.secret]
    assert token.secret not in said
    assert token.encode() not in said
    for path in daemon.folder.rglob("*"):
        if path.is_file() and path != daemon.config:
            assert token.secret.encode() not in path.read_bytes()


async def test_no_process_of_the_agent_leaves_a_core(daemon: Daemon, controller: FakeController) -> None:
    await enrolled(daemon, controller)
    await daemon.start()
    assert daemon.process is not None
    limits = await asyncio.to_thread(Path(f"/proc/{daemon.process.pid}/limits").read_text)
    (line,) = [text for text in limits.splitlines() if text.startswith("Max core file size")]
    assert line.split()[4:6] == ["0", "0"]


async def test_a_private_key_that_others_may_read_is_told(daemon: Daemon, controller: FakeController) -> None:
    await enrolled(daemon, controller)
    (daemon.folder / "s/enrolment/key.pem").chmod(0o640)
    await daemon.start()
    report = await daemon.until(lambda r: "identity-exposed" in [c["code"] for c in r["conditions"]])
    (text,) = [c["text"] for c in report["conditions"] if c["code"] == "identity-exposed"]
    assert "mode 640, limit 600" in text


async def test_the_most_talkative_log_of_a_serving_agent_holds_no_secret(
    daemon: Daemon, controller: FakeController
) -> None:
    token = controller.token()
    assert await daemon.command("enroll", "--token", token.encode(), "--verbose") == 0
    controller.desired = controller.assign(1, offer(controller, 1))
    daemon.process = await daemon._spawn("run", "--verbose")
    await daemon.until(lambda r: active(r) == 1)
    await controller.until(lambda c: c.committed)
    await daemon.stop()

    log = (daemon.folder.parent / f"{daemon.folder.name}.log").read_text()
    assert "DEBUG" in log
    key = (daemon.folder / "s/enrolment/key.pem").read_text().splitlines()
    for secret in (token.secret, token.encode(), *key):
        assert secret not in log
