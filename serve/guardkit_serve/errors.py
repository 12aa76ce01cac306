"""What goes wrong with a request, and how each protocol says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

BLOCKED = "content_filter"
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 529: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


class HttpError(Exception):
    """An answer that is an error. code: for programs; message: for people, without any judged text or key."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def _class(self) -> str:
        return "invalid_request_error" if self.status < 500 else "server_error"

    def openai(self) -> dict[str, Any]:
        kind = OPENAI_TYPES.get(self.status, self._class)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic(self) -> dict[str, Any]:
        kind = ANTHROPIC_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        error = {"type": kind, "message": self.message} | ({"code": self.code} if self.code else {})
        return {"type": "error", "error": error}

    def response(self, path: str) -> Response:
        body = self.anthropic() if path == "/v1/messages" else self.openai()
        return JSONResponse(body, self.status, headers=self.headers)


def overloaded(message: str, seconds: int = 1) -> HttpError:
    return HttpError(503, message, "overloaded", headers={"retry-after": str(seconds)})
