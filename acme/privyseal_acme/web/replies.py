"""Answers before they are HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from aiohttp import web

from privyseal_acme.protocol.problems import Problem

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
PEM_CHAIN: Final = "application/pem-certificate-chain"

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler answers. ``body`` is a JSON document, or bytes of ``content_type``, or nothing."""

    body: Any = None
    status: int = 200
    headers: Headers = ()
    content_type: str = JSON

    def response(self) -> web.Response:
        """The HTTP response. Content types are exact: clients compare them."""
        if self.body is None:
            response = web.Response(status=self.status)
        else:
            body = self.body if isinstance(self.body, bytes) else orjson.dumps(self.body)
            response = web.Response(status=self.status, body=body, headers={"Content-Type": self.content_type})
        for name, value in self.headers:
            response.headers.add(name, value)
        return response


def problem_reply(problem: Problem) -> Reply:
    """A problem document (RFC 8555 section 6.7)."""
    return Reply(problem.document(), problem.status, problem.headers, PROBLEM)


def retry_after(seconds: int) -> tuple[str, str]:
    """Whole seconds, never fewer than one and never a date: some clients read nothing else."""
    return "Retry-After", str(max(1, seconds))


def link(url: str, relation: str) -> tuple[str, str]:
    """A Link header (RFC 8288)."""
    return "Link", f'<{url}>;rel="{relation}"'
