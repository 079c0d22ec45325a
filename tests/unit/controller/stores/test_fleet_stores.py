"""What the ports of agents and tokens promise. A store that is to stand behind them runs this suite."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.support.clock import NOON
from vedette.controller.adapters.sqlite.agents import KEPT_ASSIGNMENTS, AgentStore
from vedette.controller.adapters.sqlite.database import Database
from vedette.controller.adapters.sqlite.tokens import AdminStore, TokenStore
from vedette.controller.domain.desired import Heard, Issued, StoredAgent, issue
from vedette.controller.domain.errors import NotFound, Refused, Unauthenticated
from vedette.controller.domain.tokens import Applicant, Enrolled, TokenRecord, secret_digest
from vedette.controller.services.enrolment import Tokens
from vedette.controller.services.fleet import Agents
from vedette.models.assignment import SlotAssignment
from vedette.models.signing import SigningKey
from vedette.wire.values import Condition, Facts, GenerationResult, Gpu, Outcome, Severity, Status

KEY = SigningKey.generate()
FACTS = Facts(hostname="edge", cpu_features=("avx2",), runtimes={"onnxruntime": "1.32"}, gpus=(Gpu(name="x"),))
SLOT = SlotAssignment("m", "m", 1, "sha256:" + "1" * 64, "sha256:" + "2" * 64)


@pytest.fixture
def agents(database: Database) -> Agents:
    return AgentStore(database)


@pytest.fixture
def tokens(database: Database) -> Tokens:
    return TokenStore(database)


def token(**changes: Any) -> TokenRecord:
    whole: dict[str, Any] = {
        "id": "t-1",
        "secret_digest": secret_digest("secret"),
        "labels": {"site": "s1"},
        "uses": 3,
        "created": NOON,
        "expires": NOON + timedelta(hours=1),
    }
    return TokenRecord(**(whole | changes))


def applicant(number: int = 1, **changes: Any) -> Applicant:
    whole: dict[str, Any] = {
        "agent_id": f"a-{number}",
        "token_id": "t-1",
        "secret": "secret",
        "key_digest": f"key{number}",
        "name": "",
        "facts": FACTS,
    }
    return Applicant(**(whole | changes))


def enrol(tokens: Tokens, number: int = 1, **changes: Any) -> Enrolled:
    return tokens.enrol(applicant(number, **changes), at=NOON, certify=lambda agent_id: f"PEM {agent_id}".encode())


def only(agents: Agents) -> StoredAgent:
    (stored,) = agents.load()
    return stored


def test_an_enrolled_agent_is_loaded_as_it_was_added(agents: Agents, tokens: Tokens):
    tokens.add(token())
    made = enrol(tokens, name="edge-7")
    assert (made.is_new, made.certificate) == (True, b"PEM a-1")
    assert only(agents) == StoredAgent(made.agent, {}, None, 0)
    assert (made.agent.labels, made.agent.facts, made.agent.enrolled) == ({"site": "s1"}, FACTS, NOON)


def test_agents_are_loaded_by_name(agents: Agents, tokens: Tokens):
    tokens.add(token())
    for number, name in enumerate(("c", "a", "b")):
        enrol(tokens, number, name=name)
    assert [stored.record.name for stored in agents.load()] == ["a", "b", "c"]


def test_a_name_is_given_once(agents: Agents, tokens: Tokens):
    tokens.add(token())
    assert [enrol(tokens, number).agent.name for number in (1, 2, 3)] == ["edge", "edge-2", "edge-3"]


def test_a_failed_certificate_spends_and_adds_nothing(agents: Agents, tokens: Tokens):
    tokens.add(token())

    def fail(agent_id: str) -> bytes:
        raise KeyError(agent_id)

    with pytest.raises(KeyError):
        tokens.enrol(applicant(), at=NOON, certify=fail)
    assert agents.load() == []
    assert tokens.list_all()[0].used == 0


def test_the_same_key_gets_the_same_agent_even_when_the_token_is_spent_or_over(tokens: Tokens):
    tokens.add(token(uses=1))
    first = enrol(tokens)
    tokens.revoke("t-1", NOON)
    again = enrol(tokens, 9, key_digest="key1")
    assert again == replace(first, is_new=False)
    assert tokens.list_all()[0].used == 1


def test_a_removed_agents_key_does_not_come_back_on_a_spent_token(agents: Agents, tokens: Tokens):
    tokens.add(token(uses=1))
    enrol(tokens)
    agents.remove("a-1")
    with pytest.raises(Refused, match="used up"):
        enrol(tokens, 2, key_digest="key1")


def test_a_revoked_agents_key_does_not_come_back(agents: Agents, tokens: Tokens):
    tokens.add(token())
    enrol(tokens)
    agents.revoke("a-1", NOON)
    with pytest.raises(Refused, match="revoked"):
        enrol(tokens, 2, key_digest="key1")


@pytest.mark.parametrize(
    ("changes", "asked", "kind", "code"),
    [
        ({}, {"secret": "wrong"}, Unauthenticated, "token-unknown"),
        ({}, {"token_id": "t-2"}, Unauthenticated, "token-unknown"),
        ({}, {"secret": ""}, Unauthenticated, "token-unknown"),
        ({}, {"token_id": "t-2", "secret": ""}, Unauthenticated, "token-unknown"),
        ({"expires": NOON}, {}, Refused, "token-expired"),
    ],
)
def test_tokens_refuse(tokens: Tokens, changes: Any, asked: Any, kind: type[Exception], code: str):
    tokens.add(token(**changes))
    with pytest.raises(kind) as caught:
        enrol(tokens, **asked)
    assert getattr(caught.value, "code", "") == code


def test_tokens_are_listed_newest_first_and_revoked_once(tokens: Tokens):
    tokens.add(token())
    tokens.add(token(id="t-2", created=NOON + timedelta(seconds=1)))
    assert [item.id for item in tokens.list_all()] == ["t-2", "t-1"]
    assert tokens.revoke("t-1", NOON).revoked == NOON
    assert tokens.revoke("t-1", NOON + timedelta(days=1)).revoked == NOON
    with pytest.raises(NotFound):
        tokens.revoke("t-3", NOON)


def test_what_an_agent_said_last_is_kept_and_its_highest_sequence_never_falls(agents: Agents, tokens: Tokens):
    tokens.add(token())
    enrol(tokens)
    trouble = Condition(code="x", severity=Severity.WARNING, text="t", since=NOON)
    status = Status(desired_sequence=4, conditions=(trouble,), agent_time=NOON)
    heard = Heard(
        agent_id="a-1", seen=NOON, address="10.0.0.1", facts=Facts(os="debian 12"), status=status, reported_sequence=9
    )
    agents.save_heard([heard, replace(heard, agent_id="a-gone")])
    agents.save_heard([replace(heard, reported_sequence=3)])
    stored = only(agents)
    assert (stored.record.status, stored.record.seen, stored.record.address) == (status, NOON, "10.0.0.1")
    assert (stored.record.facts.os, stored.reported_sequence) == ("debian 12", 9)


def test_results_labels_and_revocation_are_kept(agents: Agents, tokens: Tokens):
    tokens.add(token())
    enrol(tokens)
    result = GenerationResult(sequence=3, outcome=Outcome.FAILED, code="golden", reason="row 3")
    agents.save_result("a-1", result)
    agents.set_labels("a-1", {"ring": "canary"})
    agents.revoke("a-1", NOON)
    agents.revoke("a-1", NOON + timedelta(days=1))
    record = only(agents).record
    assert (record.result, record.labels, record.revoked) == (result, {"ring": "canary"}, NOON)


def made(sequence: int, *slots: SlotAssignment) -> Issued:
    return issue("a-1", {slot.slot: slot for slot in slots}, above=[sequence - 1], now=NOON, key=KEY)


def test_the_newest_assignment_and_its_slots_are_loaded(agents: Agents, tokens: Tokens):
    tokens.add(token())
    enrol(tokens)
    agents.save_desired("a-1", made(1, SLOT), NOON)
    newest = made(7, replace(SLOT, version=2), replace(SLOT, slot="n", model="n"))
    agents.save_desired("a-1", newest, NOON)
    stored = only(agents)
    assert stored.newest == newest
    assert stored.slots == {slot.slot: slot for slot in newest.slots}
    agents.save_desired("a-1", made(8), NOON)
    assert only(agents) == StoredAgent(only(agents).record, {}, made(8), 0)


def test_assignments_of_an_agent_do_not_pile_up(agents: Agents, tokens: Tokens, database: Database):
    tokens.add(token())
    enrol(tokens)
    for sequence in range(1, KEPT_ASSIGNMENTS + 20):
        agents.save_desired("a-1", made(sequence, SLOT), NOON)
    with database.transaction() as connection:
        kept = [row[0] for row in connection.execute("SELECT sequence FROM assignments ORDER BY sequence")]
    assert kept == list(range(20, KEPT_ASSIGNMENTS + 20))


def test_a_removed_agent_leaves_nothing(agents: Agents, tokens: Tokens, database: Database):
    tokens.add(token())
    enrol(tokens)
    agents.save_desired("a-1", made(1, SLOT), NOON)
    agents.remove("a-1")
    assert agents.load() == []
    assert database.damage() is None
    assert enrol(tokens, 2).agent.name == "edge"


def test_admins_are_known_by_their_key(database: Database):
    store = AdminStore(database)
    store.add("admin", "digest", NOON)
    assert store.key_digests() == {"admin": "digest"}
