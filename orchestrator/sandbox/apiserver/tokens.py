"""Service-account tokens: ES256 JWTs with Kubernetes' claims, bound to objects that must still exist."""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from orchestrator.sandbox.apiserver.calls import User
from orchestrator.sandbox.apiserver.objects import Obj
from orchestrator.sandbox.apiserver.store import Store

ISSUER = "https://kubernetes.default.svc.cluster.local"
DEFAULT_AUDIENCES = (ISSUER,)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class BadToken(Exception):
    """A token that is not accepted, and why."""


class Tokens:
    """Issue and check service-account tokens."""

    def __init__(self, signing_key: bytes, store: Store) -> None:
        key = serialization.load_pem_private_key(signing_key, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key, self._store = key, store
        public = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.key_id = _encode(hashlib.sha256(public).digest())

    def issue(self, account: Obj, audiences: list[str], seconds: int, bound: Obj | None) -> tuple[str, int]:
        """Return a token for a service account and its expiry (seconds since the epoch)."""
        meta = account["metadata"]
        now = int(time.time())
        claims: Obj = {
            "aud": audiences,
            "exp": now + seconds,
            "iat": now,
            "iss": ISSUER,
            "jti": str(uuid.uuid4()),
            "nbf": now,
            "sub": f"system:serviceaccount:{meta['namespace']}:{meta['name']}",
            "kubernetes.io": {
                "namespace": meta["namespace"],
                "serviceaccount": {"name": meta["name"], "uid": meta["uid"]},
                **(
                    {bound["kind"].lower(): {"name": bound["metadata"]["name"], "uid": bound["metadata"]["uid"]}}
                    if bound
                    else {}
                ),
            },
        }
        head = _encode(msgspec.json.encode({"alg": "ES256", "kid": self.key_id}))
        signed = f"{head}.{_encode(msgspec.json.encode(claims))}"
        r, s = utils.decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}", claims["exp"]

    def check(self, token: str, audiences: tuple[str, ...]) -> tuple[User, list[str]]:
        """Return the user of a token and the audiences that fit; raises BadToken."""
        claims = self._verified(token)
        wanted = audiences or DEFAULT_AUDIENCES
        offered = claims.get("aud") or []
        fitting = [a for a in wanted if a in ([offered] if isinstance(offered, str) else offered)]
        if not fitting:
            raise BadToken(f"token audiences {offered!r} is invalid for the target audiences {list(wanted)!r}")
        if claims["exp"] <= time.time():
            raise BadToken("service account token has expired")
        return self._user(claims), fitting

    def _verified(self, token: str) -> Obj:
        try:
            head, body, signature = token.split(".")
            raw = _decode(signature)
            dss = utils.encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
            self._key.public_key().verify(dss, f"{head}.{body}".encode(), ec.ECDSA(hashes.SHA256()))
            claims: Obj = msgspec.json.decode(_decode(body))
        except (ValueError, InvalidSignature, msgspec.DecodeError) as error:
            raise BadToken("invalid bearer token") from error
        if claims.get("iss") != ISSUER:
            raise BadToken("invalid bearer token")
        return claims

    def _user(self, claims: Obj) -> User:
        private = claims["kubernetes.io"]
        namespace, account = private["namespace"], private["serviceaccount"]
        self._must_live("serviceaccounts", namespace, account, "service account")
        extra: dict[str, list[str]] = {"authentication.kubernetes.io/credential-id": [f"JTI={claims['jti']}"]}
        if pod := private.get("pod"):
            self._must_live("pods", namespace, pod, "pod")
            extra["authentication.kubernetes.io/pod-name"] = [pod["name"]]
            extra["authentication.kubernetes.io/pod-uid"] = [pod["uid"]]
        if secret := private.get("secret"):
            self._must_live("secrets", namespace, secret, "secret")
        if node := private.get("node"):
            self._must_live("nodes", "", node, "node")
            extra["authentication.kubernetes.io/node-name"] = [node["name"]]
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
        return User(str(claims["sub"]), groups, account["uid"], extra)

    def _must_live(self, storage: str, namespace: str, reference: Any, what: str) -> None:
        found = self._store.get(storage, namespace, reference["name"])
        if found is None or found["metadata"]["uid"] != reference["uid"]:
            raise BadToken(f"{what} {namespace}/{reference['name']} has been deleted")

    def key_set(self) -> Obj:
        """Return the public key as a JWKS."""
        numbers = self._key.public_key().public_numbers()
        x, y = (_encode(n.to_bytes(32, "big")) for n in (numbers.x, numbers.y))
        return {
            "keys": [{"use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256", "x": x, "y": y}]
        }

    @staticmethod
    def configuration(url: str) -> Obj:
        return {
            "issuer": ISSUER, "jwks_uri": f"{url}/openid/v1/jwks", "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"],
        }  # fmt: skip
