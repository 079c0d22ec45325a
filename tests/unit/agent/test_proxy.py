"""Claims about the way to a controller: proxies, who is reached without them, and what their refusals are called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.connect_proxy import ConnectProxy
from tests.support.fake_controller import FakeController
from tests.unit.agent.test_link import Bench, identity_for, running
from vedette.agent.adapters.fleet import enrolment
from vedette.agent.adapters.fleet.channels import ProxyRefused, ProxyUnreachable
from vedette.agent.adapters.fleet.identity import IdentityStore
from vedette.agent.domain.proxy import Proxy, Ways, parse_direct, parse_proxy
from vedette.agent.settings import read_settings
from vedette.models.toml_settings import SettingsError, WrongValue
from vedette.wire.values import Facts

# Which proxy a URL names


@pytest.mark.parametrize(
    ("url", "address", "authorization"),
    [
        ("http://proxy.example:3128", "proxy.example:3128", ""),
        ("http://proxy.example:3128/", "proxy.example:3128", ""),
        ("http://[2001:db8::1]:3128", "[2001:db8::1]:3128", ""),
        ("http://Aladdin:open%20sesame@p:1", "p:1", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),  # RFC 7617 section 2
        ("http://u:p%40s%3As@p:1", "p:1", "Basic dTpwQHM6cw=="),
        ("http://test:123%C2%A3@p:1", "p:1", "Basic dGVzdDoxMjPCow=="),  # RFC 7617 section 2.1
        ("http://u@p:1", "p:1", "Basic dTo="),
    ],
)
def test_a_url_names_a_proxy(url: str, address: str, authorization: str) -> None:
    proxy = parse_proxy(url)
    assert proxy is not None
    assert (proxy.address, proxy.authorization) == (address, authorization)


@pytest.mark.parametrize(
    "url",
    [
        "https://u:s3cret@p:1",
        "socks5://u:s3cret@p:1",
        "p:3128",
        "http://u:s3cret@p",
        "http://u:s3cret@:3128",
        "http://u:s3cret@p:99999",
        "http://u:s3cret@p:1/path",
        "http://u:s3cret@p:1?x",
        "http://u%3Ax:s3cret@p:1",
        "http://u:s3cret%0d%0aX: y@p:1",
        "http://u:s3cret%ff@p:1",
        "http://u:s3cret@[::1:1",
        "http://" + "s3cret" * 300,
        7,
    ],
)
def test_what_names_no_proxy_is_refused_and_not_repeated(url: object) -> None:
    with pytest.raises(WrongValue) as caught:
        parse_proxy(url)
    assert "s3cret" not in str(caught.value)


def test_a_password_is_in_no_text_of_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('link.proxy = "http://u:s3cret@p:1"')
    settings = read_settings(file)
    assert settings.link.ways.proxy is not None
    assert settings.link.ways.proxy.authorization not in repr(settings)
    file.write_text('link.proxy = "http://u:s3cret@p"')
    with pytest.raises(SettingsError) as caught:
        read_settings(file)
    assert "s3cret" not in str(caught.value)


# Who is reached without it

_PROXY = Proxy("p", 1)


@pytest.mark.parametrize(
    ("rules", "address", "is_direct"),
    [
        ([], "ctl.example:7443", False),
        (["ctl.example"], "ctl.example:7443", True),
        (["ctl.example"], "CTL.Example.:7443", True),
        (["example"], "ctl.example:7443", True),
        ([".example"], "ctl.example:7443", True),
        (["*.example"], "ctl.example:7443", True),
        (["example"], "badexample:7443", False),
        (["ctl.example"], "example:7443", False),
        (["10.0.0.0/8"], "10.1.2.3:7443", True),
        (["10.0.0.0/8"], "11.1.2.3:7443", False),
        (["10.1.2.3"], "10.1.2.3:7443", True),
        (["0.0.0.0/0"], "ctl.example:7443", False),
        (["0.0.0.0/0"], "[fd00::1]:7443", False),
        (["fd00::/8"], "[fd00::1]:7443", True),
        (["other", "fd00::1"], "[fd00::1]:7443", True),
    ],
)
def test_names_addresses_and_networks_are_reached_without_the_proxy(
    rules: list[str], address: str, is_direct: bool
) -> None:
    ways = Ways(_PROXY, parse_direct(rules))
    assert ways.proxy_to(address) == (None if is_direct else _PROXY)


@pytest.mark.parametrize("rule", ["", "*", "http://x", "a b", "ctl.example:7443", "[::1]", "10.0.0.0/33"])
def test_a_rule_that_could_never_hold_is_refused(rule: str) -> None:
    with pytest.raises(WrongValue):
        parse_direct([rule])


# Through a real one


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    async with FakeController() as started:
        yield started


@pytest.fixture
async def proxy() -> AsyncIterator[ConnectProxy]:
    async with ConnectProxy().serving() as started:
        yield started


def through(proxy: ConnectProxy, user: str = "") -> Ways:
    return Ways(parse_proxy(f"http://{user}{'@' if user else ''}127.0.0.1:{proxy.port}"))


async def enrol(controller: FakeController, store: IdentityStore, ways: Ways, timeout_s: float = 5.0) -> None:
    token, facts = controller.token(), Facts(hostname="h")
    await asyncio.to_thread(enrolment.enrol, token, store, name="e", facts=facts, ways=ways, timeout_s=timeout_s)


async def test_enrolment_goes_through_the_proxy_alone(
    controller: FakeController, proxy: ConnectProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "*")
    proxy.user = "edge:p@s:s"
    store = IdentityStore(tmp_path / "e")
    await enrol(controller, store, through(proxy, "edge:p%40s%3As"))
    assert store.load() is not None
    assert set(proxy.asked) == {f"127.0.0.1:{controller.enrol_port}"}
    assert len(proxy.asked) == 3  # the certificate, who is there, the identity


@pytest.mark.parametrize(
    ("refuse", "user", "words"),
    [
        (0, "edge:right", ["407", "wants a user"]),
        (403, "", ["403", "Forbidden", "7443"]),
        (502, "", ["502", "Bad Gateway"]),
        (599, "", ["599"]),
    ],
)
async def test_a_refusal_of_the_proxy_is_named_by_enrolment(
    controller: FakeController, proxy: ConnectProxy, tmp_path: Path, *, refuse: int, user: str, words: list[str]
) -> None:
    proxy.refuse, proxy.user = refuse, user
    with pytest.raises(ProxyRefused) as caught:
        await enrol(controller, IdentityStore(tmp_path / "e"), through(proxy))
    assert [word for word in words if word not in caught.value.lines] == []
    assert controller.secrets_seen == []


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 " + b"2" * 40_000])
async def test_something_that_is_no_proxy_is_named(
    controller: FakeController, proxy: ConnectProxy, tmp_path: Path, answer: bytes
) -> None:
    proxy.answer = answer
    with pytest.raises(ProxyRefused, match="as an HTTP proxy does"):
        await enrol(controller, IdentityStore(tmp_path / "e"), through(proxy))


async def test_a_proxy_that_says_nothing_costs_no_more_than_the_time_limit(
    controller: FakeController, proxy: ConnectProxy, tmp_path: Path
) -> None:
    proxy.is_mute = True
    with pytest.raises(ProxyUnreachable, match="time"):
        await enrol(controller, IdentityStore(tmp_path / "e"), through(proxy), timeout_s=0.3)


async def test_a_proxy_that_closes_without_a_word_is_named(
    controller: FakeController, proxy: ConnectProxy, tmp_path: Path
) -> None:
    proxy.answer = b""
    with pytest.raises(ProxyUnreachable, match="closed"):
        await enrol(controller, IdentityStore(tmp_path / "e"), through(proxy))


async def test_a_proxy_that_is_not_there_is_named(controller: FakeController, tmp_path: Path) -> None:
    ways = Ways(Proxy("127.0.0.1", 1))
    with pytest.raises(ProxyUnreachable, match=r"127\.0\.0\.1:1 on the way"):
        await enrol(controller, IdentityStore(tmp_path / "e"), ways)


def bench_through(controller: FakeController, key: bytes, ways: Ways) -> Bench:
    return Bench(identity_for(controller, key), ways=ways)


async def test_the_link_goes_through_the_proxy_with_its_bulk(
    controller: FakeController, proxy: ConnectProxy, agent_key: bytes
) -> None:
    proxy.user = "edge:secret"
    async with running(bench_through(controller, agent_key, through(proxy, "edge:secret"))) as bench:
        channel = await bench.link.bulk()
        await asyncio.wait_for(channel.channel_ready(), 10)
        assert set(proxy.asked) == {controller.address}
        assert len(proxy.asked) == 2  # control and bulk


@pytest.mark.parametrize(
    ("refuse", "answer", "code", "words"),
    [
        (407, None, "proxy-refused", ["407", "USER:PASSWORD"]),
        (403, None, "proxy-refused", ["403", "CONNECT"]),
        (503, None, "proxy-refused", ["503"]),
        (0, b"SSH-2.0-OpenSSH\r\n", "proxy-refused", ["as an HTTP proxy does"]),
        (0, b"", "controller-unreachable", []),  # it dies before it answers
    ],
)
async def test_a_refusal_of_the_proxy_is_a_condition_with_a_name(
    controller: FakeController,
    proxy: ConnectProxy,
    agent_key: bytes,
    *,
    refuse: int,
    answer: bytes | None,
    code: str,
    words: list[str],
) -> None:
    proxy.refuse, proxy.answer = refuse, answer
    async with running(bench_through(controller, agent_key, through(proxy))) as bench:
        await bench.until_waits(1)
        (condition,) = bench.conditions.current()
        assert condition.code == code
        assert [word for word in words if word not in condition.text] == []
        proxy.refuse, proxy.answer = 0, None
        await bench.clock.advance(1.0)
        await bench.link.bulk()
        assert bench.codes == []


async def test_a_proxy_that_is_not_there_or_has_no_name_is_a_condition(
    controller: FakeController, agent_key: bytes
) -> None:
    for host in ("127.0.0.1", "proxy.invalid"):
        async with running(bench_through(controller, agent_key, Ways(Proxy(host, 1)))) as bench:
            await bench.until_waits(1)
            assert bench.codes == ["proxy-unreachable"]


async def test_a_proxy_that_takes_the_request_and_says_nothing_is_left(
    controller: FakeController, proxy: ConnectProxy, agent_key: bytes
) -> None:
    proxy.is_mute = True
    async with running(Bench(identity_for(controller, agent_key), 0.2, through(proxy))) as bench:
        await bench.until_waits(1)
        (condition,) = bench.conditions.current()
        assert condition.code == "proxy-unreachable"
        assert "neither it nor the controller answered in 0.2 s" in condition.text


async def test_a_proxy_that_dies_in_the_middle_costs_a_session_and_no_more(
    controller: FakeController, proxy: ConnectProxy, agent_key: bytes
) -> None:
    async with running(bench_through(controller, agent_key, through(proxy))) as bench:
        await bench.link.bulk()
        proxy.die()
        await bench.until_waits(1)
        assert bench.codes == ["controller-unreachable"]
        await bench.clock.advance(1.0)
        await bench.link.bulk()
        assert bench.codes == []


async def test_a_controller_of_no_proxy_is_reached_straight(
    controller: FakeController, proxy: ConnectProxy, agent_key: bytes
) -> None:
    ways = Ways(through(proxy).proxy, parse_direct(["127.0.0.0/8"]))
    async with running(bench_through(controller, agent_key, ways)) as bench:
        await bench.link.bulk()
    assert proxy.asked == []


async def test_a_proxy_that_opens_tls_is_named_as_not_the_controller(
    controller: FakeController, proxy: ConnectProxy, agent_key: bytes
) -> None:
    async with FakeController() as other:  # of another authority: what an intercepting proxy shows
        identity = identity_for(controller, agent_key).reached_at((other.address,))
        async with running(Bench(identity, ways=through(proxy))) as bench:
            await bench.until_waits(1)
            assert bench.codes == ["controller-certificate-wrong"]
