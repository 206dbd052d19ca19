"""What is wrong with a request: a sentence, and what HTTP and OpenAI's interface call it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
"""OpenAI's `type` of a status; all others are "invalid_request_error"."""


@dataclasses.dataclass(eq=False)
class Wrong(Exception):
    """A request that gets no text.

    Attributes:
      message: one sentence.
      status: of HTTP.
      param: the field that is meant.
      code: a word for programs.
      headers: that go with it.
    """

    message: str
    status: int = 400
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """As OpenAI's interface writes it."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
