"""Errors of requests, sent as JSON {"error": message of one line, "field": name or null}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Seconds after which an overloaded server may be asked again.
RETRY_S = 1


class Problem(Exception):
    """Error for a request that cannot be answered.

    Attributes:
      status: HTTP status of the response.
      error: message of one line.
      field: field of the request that is wrong, such as "inputs[2]"; None if the error
        concerns no field.
      headers: headers of the response.
    """

    def __init__(
        self,
        status: int,
        error: str,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        """See the attributes."""
        super().__init__(error)
        self.status, self.error, self.field = status, " ".join(error.split()), field
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, str | None]:
        """Body of the response, as a JSON value."""
        return {"error": self.error, "field": self.field}


def invalid(error: str, field: str | None) -> Problem:
    """Returns a `Problem` with status 422 for a field that has a wrong value."""
    return Problem(422, error, field)


def overloaded(error: str) -> Problem:
    """Returns a `Problem` with status 429 for a server that has too many requests."""
    return Problem(429, error, None, {"Retry-After": str(RETRY_S)})


def known_keys(value: Any, known: Sequence[str], field: str) -> dict[str, Any]:
    """Checks that a JSON value is an object without unknown keys; returns it.

    Args:
      value: JSON value.
      known: known keys.
      field: name of the value in messages.

    Raises:
      Problem: the value is not an object, or has an unknown key.
    """
    if not isinstance(value, dict):
        raise invalid(f"{field}: expected an object with {', '.join(known)}", field)
    for key in value:
        if key not in known:
            inner = f"{field}.{key}" if field != "body" else key
            raise invalid(f"{inner[:80]}: unknown key, expected {', '.join(known)}", inner[:80])
    return value
