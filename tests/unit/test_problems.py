"""The table of errors, and what of an error a client gets to see."""

import inspect

import pytest

from privyseal_acme.protocol.problems import PREFIX, STATUS, Problem, Subproblem, problem_for, rate_limited, try_again
from privyseal_ca import errors
from privyseal_ca.errors import PrivySealError

_SECRET = "SECRET /path PIN 1234"


def _all_errors() -> list[type[PrivySealError]]:
    return [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, PrivySealError)]


def _made(kind: type[PrivySealError]) -> PrivySealError:
    if issubclass(kind, errors.NameRefusedError):
        return kind("dns", "a.test", _SECRET, hint="hint")
    return kind(_SECRET, hint="hint")


@pytest.mark.parametrize("kind", _all_errors())
def test_every_error_has_a_problem(kind: type[PrivySealError]) -> None:
    problem = problem_for(_made(kind))
    document = problem.document()
    assert document["type"] == PREFIX + problem.type
    assert document["status"] == problem.status
    assert problem.type in STATUS
    # What the requester did wrong is told; what went wrong in here is not.
    told = (errors.PolicyError, errors.IssuerNotValidError)
    assert (_SECRET in document["detail"]) == issubclass(kind, told) or kind is errors.PolicyError


@pytest.mark.parametrize(
    "kind",
    [
        errors.StoreUnavailableError,
        errors.SignerUnavailableError,
        errors.SignatureUncertainError,
        errors.IssuerNotValidError,
    ],
)
def test_what_is_away_comes_back(kind: type[PrivySealError]) -> None:
    problem = problem_for(kind("away"))
    assert problem.status == 503
    assert int(dict(problem.headers)["Retry-After"]) >= 1


@pytest.mark.parametrize("seconds", [0.0, 0.2, 1.0, 1.5, 59.999, 3600.0])
def test_retry_after_is_whole_seconds_and_enough(seconds: float) -> None:
    for problem in (
        rate_limited("x", limit="new_orders", seconds=seconds, help_url="https://ca.test/limits"),
        try_again("x", seconds=0),
    ):
        value = int(dict(problem.headers)["Retry-After"])
        assert value >= 1
        if problem.type == "rateLimited":
            assert value >= seconds


def test_subproblems() -> None:
    problem = Problem("compound", "two", subproblems=[Subproblem("malformed", "bad", "dns", "x")])
    document = problem.document()
    assert "identifier" not in document
    assert document["subproblems"] == [
        {"type": PREFIX + "malformed", "detail": "bad", "identifier": {"type": "dns", "value": "x"}}
    ]
