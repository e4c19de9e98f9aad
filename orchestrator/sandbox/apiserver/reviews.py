"""Kinds that are questions and not objects: token and access reviews, and token requests."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from orchestrator.sandbox.apiserver.authentication import Authenticator
from orchestrator.sandbox.apiserver.authorization import Ask, Authorizer
from orchestrator.sandbox.apiserver.calls import Call, User
from orchestrator.sandbox.apiserver.objects import Obj
from orchestrator.sandbox.apiserver.status import Cause, bad_request, conflict, invalid, invalid_value, not_found
from orchestrator.sandbox.apiserver.store import Store
from orchestrator.sandbox.apiserver.tokens import DEFAULT_AUDIENCES, BadToken, Tokens

_NOBODY = invalid_value("spec.user", "", "at least one of user or group must be specified")
_BOUND = {("Pod", "v1"): "pods", ("Secret", "v1"): "secrets", ("Node", "v1"): "nodes"}


class Reviews:
    """Answer TokenReview, SubjectAccessReview and their sisters."""

    def __init__(self, store: Store, authenticator: Authenticator, authorizer: Authorizer, tokens: Tokens) -> None:
        self._store, self._authenticator, self._authorizer, self._tokens = store, authenticator, authorizer, tokens

    def answer(self, call: Call, body: Obj) -> Obj:
        """Return the review with its status filled in."""
        body.setdefault("metadata", {})
        spec = body.setdefault("spec", {})
        match call.kind.plural:
            case "tokenreviews":
                body["status"] = self._token(spec)
            case "selfsubjectreviews":
                body.pop("spec")
                body["status"] = {"userInfo": _user_info(call.user)}
            case "selfsubjectrulesreviews":
                body["status"] = self._rules(call.user, str(spec.get("namespace") or ""))
            case "selfsubjectaccessreviews":
                _check_access(spec)
                body["status"] = self._access(call.user, spec)
            case _:
                _check_access(spec, [] if spec.get("user") or spec.get("groups") else [_NOBODY])
                user = User(str(spec.get("user") or ""), tuple(spec.get("groups") or ()))
                body["status"] = self._access(user, spec)
        return {"kind": call.kind.kind, "apiVersion": call.kind.api_version, **body}

    def _token(self, spec: Obj) -> Obj:
        if not spec.get("token"):
            raise bad_request("token is required for TokenReview in authentication")
        try:
            user, audiences = self._authenticator.review(
                str(spec.get("token") or ""), tuple(spec.get("audiences") or ())
            )
        except BadToken as error:
            return {"user": {}, "error": f"[invalid bearer token, {error}]"}
        return {"authenticated": True, "user": _user_info(user), "audiences": audiences or list(DEFAULT_AUDIENCES)}

    def _access(self, user: User, spec: Obj) -> Obj:
        resource, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
        if resource:
            plural = str(resource.get("resource") or "")
            if resource.get("subresource"):
                plural += f"/{resource['subresource']}"
            ask = Ask(
                str(resource.get("verb") or ""), str(resource.get("group") or ""), plural,
                str(resource.get("namespace") or ""), str(resource.get("name") or ""),
            )  # fmt: skip
        else:
            ask = Ask(str((path or {}).get("verb") or ""), path=str((path or {}).get("path") or ""))
        allowed, reason = self._authorizer.allowed(user, ask)
        return {"allowed": allowed, **({"reason": reason} if reason else {})}

    def _rules(self, user: User, namespace: str) -> Obj:
        resources, paths = [], []
        if "system:masters" in user.groups:
            resources.append({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})
            paths.append({"verbs": ["*"], "nonResourceURLs": ["*"]})
        for rule, _ in self._authorizer.rules(user, namespace):
            if rule.get("nonResourceURLs"):
                paths.append({k: rule[k] for k in ("verbs", "nonResourceURLs")})
            else:
                keys = ("verbs", "apiGroups", "resources", "resourceNames")
                resources.append({k: rule[k] for k in keys if k in rule})
        return {"resourceRules": resources, "nonResourceRules": paths, "incomplete": False}

    def token_request(self, call: Call, body: Obj) -> Obj:
        """Issue a token for a service account (`serviceaccounts/NAME/token`)."""
        account = self._store.get("serviceaccounts", call.namespace, call.name)
        if account is None:
            raise not_found("serviceaccounts", "", call.name)
        spec = body.get("spec") or {}
        seconds = int(spec.get("expirationSeconds") or 3600)
        limit = "less than 10 minutes" if seconds < 600 else "larger than 2^32 seconds" if seconds > 1 << 32 else ""
        if limit:
            cause = invalid_value("spec.expirationSeconds", seconds, f"may not specify a duration {limit}")
            raise invalid("TokenRequest", "authentication.k8s.io", "", [cause])
        audiences = [str(a) for a in spec.get("audiences") or DEFAULT_AUDIENCES]
        bound = self._bound(call, spec.get("boundObjectRef"))
        token, expiry = self._tokens.issue(account, audiences, seconds, bound)
        shown = dt.datetime.fromtimestamp(expiry, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {
                "name": call.name,
                "namespace": call.namespace,
                "creationTimestamp": account["metadata"]["creationTimestamp"],
            },
            "spec": {
                "audiences": audiences,
                "expirationSeconds": seconds,
                "boundObjectRef": spec.get("boundObjectRef"),
            },
            "status": {"token": token, "expirationTimestamp": shown},
        }

    def _bound(self, call: Call, reference: Obj | None) -> Obj | None:
        if not reference:
            return None
        storage = _BOUND.get((str(reference.get("kind")), str(reference.get("apiVersion"))))
        if storage is None:
            group, _, version = str(reference.get("apiVersion") or "").rpartition("/")
            kind = f"{group}/{version}, Kind={reference.get('kind') or ''}"
            raise bad_request(f"cannot bind token to object of type {kind}")
        name = str(reference.get("name") or "")
        found = self._store.get(storage, "" if storage == "nodes" else call.namespace, name)
        if found is None:
            raise not_found(storage, "", name)
        wanted = reference.get("uid")
        if wanted and wanted != found["metadata"]["uid"]:
            why = (
                f"the UID in the bound object reference ({wanted}) does not match the UID in record. The object might "
                "have been deleted and then recreated"
            )
            raise conflict(storage, "", name, why)
        return found


def _check_access(spec: Obj, causes: Sequence[Cause] = ()) -> None:
    """Refuse a question that is not about one thing, together with what else is wrong with it."""
    found = list(causes)
    if bool(spec.get("resourceAttributes")) == bool(spec.get("nonResourceAttributes")):
        detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        found.insert(0, invalid_value("spec.resourceAttributes", spec.get("resourceAttributes"), detail))
    if found:
        raise invalid("", "authorization.k8s.io", "", found)


def _user_info(user: User) -> Obj:
    info: Obj = {"username": user.name, "groups": list(user.groups)}
    if user.uid:
        info["uid"] = user.uid
    if user.extra:
        info["extra"] = user.extra
    return info
