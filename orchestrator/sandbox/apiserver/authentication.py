"""Who is calling: static users by their tokens, service accounts by JWTs, everyone else anonymous."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

import msgspec

from orchestrator.sandbox.apiserver.calls import User
from orchestrator.sandbox.apiserver.status import unauthorized
from orchestrator.sandbox.apiserver.tokens import BadToken, Tokens

ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


class Authenticator:
    """Turn an Authorization header into a user.

    A static user's token carries the name and the groups, sealed with a key that never leaves the cluster's
    directory: any number of users without a list of them.
    """

    def __init__(self, key: bytes, tokens: Tokens) -> None:
        self._key, self._tokens = hashlib.sha256(b"static users" + key).digest(), tokens

    def static_token(self, user: str, groups: Sequence[str]) -> str:
        body = base64.urlsafe_b64encode(msgspec.json.encode([user, list(groups)])).rstrip(b"=").decode()
        return f"u-{body}-{self._seal(body)}"

    def _seal(self, body: str) -> str:
        return hmac.new(self._key, body.encode(), hashlib.sha256).hexdigest()[:32]

    def user(self, header: str) -> User:
        """Return the caller; raises 401 for a token that is not accepted."""
        scheme, _, token = header.partition(" ")
        if not header or scheme.lower() != "bearer" or not token:
            return ANONYMOUS
        try:
            return self.review(token.strip(), ())[0]
        except BadToken as error:
            raise unauthorized() from error

    def review(self, token: str, audiences: tuple[str, ...]) -> tuple[User, list[str]]:
        """Return a token's user and fitting audiences; raises BadToken."""
        if token.startswith("u-"):
            body, _, seal = token.removeprefix("u-").rpartition("-")
            if not hmac.compare_digest(seal, self._seal(body)):
                raise BadToken("invalid bearer token")
            name, groups = msgspec.json.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            return User(name, (*groups, "system:authenticated")), list(audiences)
        return self._tokens.check(token, audiences)
