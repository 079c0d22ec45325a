"""Enrolment: a one-time token and a new public key become an agent with a certificate; and the tokens' own life."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from vedette.controller.domain.agents import AgentRecord
from vedette.controller.domain.clock import Clock
from vedette.controller.domain.errors import ControllerError, TooMany
from vedette.controller.domain.rate import AddressLimit
from vedette.controller.domain.selector import check_labels
from vedette.controller.domain.tokens import DEFAULT_LIFE, Applicant, Enrolled, TokenRecord, check_terms, secret_digest
from vedette.controller.services.ports import Runner
from vedette.wire.systemd import fields
from vedette.wire.token import EnrolmentToken
from vedette.wire.values import EnrolRequest, EnrolResponse
from vedette.wire.views import Token

logger = logging.getLogger(__name__)


class Tokens(Protocol):
    """The store of tokens. Methods run in the database's thread; each is one transaction."""

    def add(self, token: TokenRecord) -> None:
        """Keep a new token."""

    def list_all(self) -> list[TokenRecord]:
        """Return every token, newest first."""
        ...

    def revoke(self, token_id: str, at: datetime) -> TokenRecord:
        """Revoke a token, or raise NotFound."""
        ...

    def enrol(self, applicant: Applicant, *, at: datetime, certify: Callable[[str], bytes]) -> Enrolled:
        """Spend a use and add an agent, or return what the same key got before; all or nothing."""
        ...


class Certifier(Protocol):
    """Checks certificate requests and signs certificates."""

    def key_digest(self, certificate_request: bytes) -> str:
        """Return the digest of the requested public key, or raise InvalidInput."""
        ...

    def certify(self, agent_id: str, certificate_request: bytes) -> bytes:
        """Return the certificate of an agent, PEM."""
        ...


class Welcomer(Protocol):
    """Learns of new agents."""

    async def admit(self, agent: AgentRecord) -> None:
        """Take an agent in; calling it again for the same one is harmless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What an agent learns at enrolment: whom to believe, and where."""

    controller_id: str
    ca_digest: str
    release_keys: tuple[bytes, ...]
    assignment_keys: tuple[bytes, ...]
    addresses: tuple[str, ...]
    enrol_address: str


class Enrolment:
    """Makes tokens and agents."""

    def __init__(
        self,
        *,
        runner: Runner,
        tokens: Tokens,
        certifier: Certifier,
        fleet: Welcomer,
        trust: Callable[[], Trust],
        clock: Clock,
    ) -> None:
        self._runner = runner
        self._tokens = tokens
        self._certifier = certifier
        self._fleet = fleet
        self._trust = trust
        self._clock = clock
        self._limit = AddressLimit()
        self.enrolled = 0

    async def enrol(self, request: EnrolRequest, address: str) -> EnrolResponse:
        """Make an agent of a token and a key; the same token and key again give the same agent.

        Args:
            request: As it came.
            address: The caller's host, without port.

        Raises:
            TooMany: This address asks far more often than a site full of new appliances would.
            Unauthenticated: The token is unknown or its secret wrong.
            Refused: The token is used, expired or revoked, or the agent was revoked.
            InvalidInput: The certificate request or the name cannot be used.
        """
        if not self._limit.allows(address, self._clock.monotonic()):
            why = f"more than {AddressLimit.RATE_PER_S:g} enrolments a second from {address}"
            raise TooMany("enrolments-too-many", "too many enrolments at once", why, "repeat it in a moment")
        try:
            enrolled = await self._runner.run(self._enrol, request, self._clock.now())
        except ControllerError as exc:
            text = "an enrolment from %s with token %s was refused: %s; %s"
            logger.warning(text, address, request.token_id[:40], exc.what, exc.why, extra=fields(code=exc.code))
            raise
        await self._fleet.admit(enrolled.agent)
        self.enrolled += enrolled.is_new
        _log_enrolled(enrolled, request.token_id, address)
        return self._response(enrolled)

    def _enrol(self, request: EnrolRequest, at: datetime) -> Enrolled:
        applicant = Applicant(
            agent_id="a-" + secrets.token_hex(8),
            token_id=request.token_id,
            secret=request.token_secret,
            key_digest=self._certifier.key_digest(request.certificate_request),
            name=request.name,
            facts=request.facts,
        )

        def certify(agent_id: str) -> bytes:
            return self._certifier.certify(agent_id, request.certificate_request)

        return self._tokens.enrol(applicant, at=at, certify=certify)

    def _response(self, enrolled: Enrolled) -> EnrolResponse:
        trust = self._trust()
        return EnrolResponse(
            agent_id=enrolled.agent.id,
            name=enrolled.agent.name,
            certificate=enrolled.certificate,
            controller_id=trust.controller_id,
            release_keys=trust.release_keys,
            assignment_keys=trust.assignment_keys,
            addresses=trust.addresses,
        )

    async def create_token(self, labels: Mapping[str, str], uses: int, expires_s: int) -> Token:
        """Make a token; 0 uses or seconds mean the defaults, one use and a day.

        Raises:
            InvalidInput: Labels, uses or life are outside their limits.
        """
        uses, life = uses or 1, timedelta(seconds=expires_s) if expires_s else DEFAULT_LIFE
        check_labels(labels)
        check_terms(uses, life)
        now, secret = self._clock.now(), secrets.token_urlsafe(32)
        token = TokenRecord(
            id="t-" + secrets.token_hex(6),
            secret_digest=secret_digest(secret),
            labels=labels,
            uses=uses,
            created=now,
            expires=now + life,
        )
        await self._runner.run(self._tokens.add, token)
        return token.view(self._text(token.id, secret))

    def _text(self, token_id: str, secret: str) -> str:
        trust = self._trust()
        return EnrolmentToken(
            addresses=trust.addresses,
            enrol_address=trust.enrol_address,
            ca_digest=trust.ca_digest,
            token_id=token_id,
            secret=secret,
        ).encode()

    async def list_tokens(self) -> Sequence[Token]:
        """Return every token, newest first, without their texts."""
        return [token.view() for token in await self._runner.run(self._tokens.list_all)]

    async def revoke_token(self, token_id: str) -> Token:
        """Revoke a token; agents it already made stay.

        Raises:
            NotFound: There is no such token.
        """
        return (await self._runner.run(self._tokens.revoke, token_id, self._clock.now())).view()


def _log_enrolled(enrolled: Enrolled, token_id: str, address: str) -> None:
    agent, how = enrolled.agent, "enrolled" if enrolled.is_new else "got its certificate again"
    text, extra = "agent %s (%s) %s from %s with token %s", fields(agent=agent.name)
    logger.info(text, agent.name, agent.id, how, address, token_id, extra=extra)
