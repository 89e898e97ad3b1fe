"""Checks challenges (RFC 8555 section 8): bounded attempts, each on its own, and an outcome that can be kept."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from privyseal_acme.validation.attempt import Attempt
from privyseal_acme.validation.caa import check_caa
from privyseal_acme.validation.challenge import ChallengeTask
from privyseal_acme.validation.channel import ChannelPool
from privyseal_acme.validation.dns01 import check_txt, dns01_name, dns_account01_name
from privyseal_acme.validation.http01 import Http01
from privyseal_acme.validation.outcome import Evidence, Outcome, ValidationFailedError, ValidationProblem
from privyseal_acme.validation.resolver import parse_resolvers
from privyseal_acme.validation.targets import TargetNetworks
from privyseal_acme.validation.tlsalpn01 import TlsAlpn01
from privyseal_ca.clock import Clock, rfc3339_milliseconds
from privyseal_ca.sections import ValidationSettings

__all__ = ["Outcome", "ValidationProblem", "Validator"]

_log = logging.getLogger(__name__)

_Check = Callable[[ChallengeTask, Attempt], Awaitable[None]]


class Validator:
    """Checks challenges. It holds no connection between checks, so any number may run at once; bounding is up to the caller.

    Raises:
        ConfigurationError: a resolver in the settings is not an address.
    """

    def __init__(
        self,
        settings: ValidationSettings,
        *,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._sleep = sleep
        self._channels = ChannelPool(parse_resolvers(settings.resolvers), settings.timeout * 3 / 4)
        self._networks = TargetNetworks(settings.allowed_networks, settings.denied_networks)
        self._checks: dict[str, _Check] = {
            "http-01": Http01(settings.http_port, settings.tls_port, settings.redirects).check,
            "tls-alpn-01": TlsAlpn01(settings.tls_port).check,
            "dns-01": lambda task, attempt: check_txt(dns01_name(task), task, attempt),
            "dns-account-01": lambda task, attempt: check_txt(dns_account01_name(task), task, attempt),
        }
        self._running: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    async def check(self, task: ChallengeTask) -> Outcome:
        """Try ``task`` until it succeeds, is refused for good, or the attempts are used up.

        It takes at most ``attempts`` times ``timeout`` plus the pauses between them, and raises nothing but
        ``CancelledError``.
        """
        current = asyncio.current_task()
        if current is not None:
            self._running.add(current)
            self._idle.clear()
        try:
            return await self._attempts(task)
        finally:
            if current is not None:
                self._running.discard(current)
            if not self._running:
                self._idle.set()

    async def close(self) -> None:
        """Cancel the checks that are running and wait until their sockets are closed."""
        for running in self._running:
            running.cancel()
        await self._idle.wait()
        self._channels.close()

    async def _attempts(self, task: ChallengeTask) -> Outcome:
        evidence: dict[str, Any] = {
            "type": task.type,
            "identifier": {"type": task.identifier_type, "value": task.value},
        }
        earlier: list[str] = []
        delay = self._settings.retry_delay
        while True:
            started = self._clock.now()
            problem, permanent, found, took = await self._attempt(task)
            if problem is None or permanent or len(earlier) + 1 >= self._settings.attempts:
                break
            earlier.append(problem.type)
            await self._sleep(delay)
            delay *= 2
        evidence.update(at=rfc3339_milliseconds(started), milliseconds=took, attempts=len(earlier) + 1, **found)
        if earlier:
            evidence["earlier"] = earlier
        if problem is not None:
            evidence["problem"] = problem.type
        return Outcome(problem is None, problem, evidence)

    async def _attempt(self, task: ChallengeTask) -> tuple[ValidationProblem | None, bool, dict[str, Any], int]:
        """One attempt: its problem if it failed, whether that is for good, what was found, and milliseconds."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        problem: ValidationProblem | None = None
        permanent = False
        evidence = Evidence()
        try:
            with Attempt(self._networks, self._channels, self._settings.timeout, evidence) as attempt:
                async with asyncio.timeout_at(attempt.deadline):
                    await self._prove(task, attempt)
        except ValidationFailedError as failure:
            problem, permanent = failure.problem, failure.permanent
        except TimeoutError:
            problem = self._late(evidence)
        except Exception:  # noqa: BLE001  # the edge of the room: an unforeseen fault fails one challenge, not its worker
            _log.exception("a validation failed on a fault of this server")
            problem = ValidationProblem("serverInternal", "This server failed while it was checking the challenge.")
        return problem, permanent, evidence.facts(), int((loop.time() - started) * 1000)

    async def _prove(self, task: ChallengeTask, attempt: Attempt) -> None:
        check = self._checks.get(task.type)
        if check is None or (task.identifier_type == "ip" and task.type.startswith("dns-")):
            # RFC 8738 section 7: no dns challenge proves control of an address.
            raise ValidationFailedError(
                "serverInternal", f"{task.type} cannot be checked for this identifier.", permanent=True
            )
        await check(task, attempt)
        if self._settings.caa:
            await check_caa(task, self._settings.caa_identities, attempt)

    def _late(self, evidence: Evidence) -> ValidationProblem:
        type_, clause = evidence.waiting
        return ValidationProblem(type_, f"{clause} took longer than {self._settings.timeout:g} seconds.")
