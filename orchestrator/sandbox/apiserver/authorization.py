"""Who may do what: RBAC objects, read from the store at each question; `system:masters` may do everything."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from orchestrator.sandbox.apiserver.calls import User
from orchestrator.sandbox.apiserver.objects import Obj
from orchestrator.sandbox.apiserver.requests import RequestInfo
from orchestrator.sandbox.apiserver.selectors import match_label_selector
from orchestrator.sandbox.apiserver.status import ApiError, forbidden
from orchestrator.sandbox.apiserver.store import Change, Store

RBAC = "rbac.authorization.k8s.io"
_ROLES = f"clusterroles.{RBAC}"
_PUBLIC = ("/healthz", "/livez", "/readyz", "/version", "/version/")


class Ask(msgspec.Struct, frozen=True):
    """One question: may this be done? `resource` includes the subresource (`pods/log`)."""

    verb: str
    group: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    @classmethod
    def of(cls, info: RequestInfo) -> Ask:
        if not info.resource:
            return cls(verb=info.verb, path=info.path)
        resource = f"{info.resource}/{info.subresource}" if info.subresource else info.resource
        return cls(info.verb, info.group, resource, info.namespace, info.name)


class Authorizer:
    """Answer questions about users."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def allowed(self, user: User, ask: Ask) -> tuple[bool, str]:
        """Return the answer and its reason."""
        if "system:masters" in user.groups:
            return True, ""
        if ask.path in _PUBLIC and ask.verb in {"get", "head"}:
            return True, 'RBAC: allowed by ClusterRoleBinding "system:public-info-viewer"'
        for rule, source in self.rules(user, ask.namespace):
            if _covers(rule, ask):
                return True, f"RBAC: allowed by {source}"
        return False, ""

    def check(self, user: User, info: RequestInfo) -> None:
        """Raise 403 in Kubernetes' words when the user may not."""
        ask = Ask.of(info)
        if not self.allowed(user, ask)[0]:
            raise refusal(user, ask)

    def rules(self, user: User, namespace: str) -> Iterator[tuple[Obj, str]]:
        """Yield every rule that applies to a user, cluster-wide and in one namespace, with where it comes from."""
        for binding in self._store.all(f"clusterrolebindings.{RBAC}"):
            if _binds(binding, user, ""):
                yield from self._of(binding, "", "ClusterRoleBinding")
        if namespace:
            for binding in self._store.all(f"rolebindings.{RBAC}", namespace):
                if _binds(binding, user, namespace):
                    yield from self._of(binding, namespace, "RoleBinding")

    def _of(self, binding: Obj, namespace: str, kind: str) -> Iterator[tuple[Obj, str]]:
        reference = binding["roleRef"]
        name = binding["metadata"]["name"] + (f"/{namespace}" if namespace else "")
        source = f'{kind} "{name}" of {reference["kind"]} "{reference["name"]}"'
        if reference["kind"] == "Role":
            role = self._store.get(f"roles.{RBAC}", namespace, reference["name"])
        else:
            role = self._store.get(f"clusterroles.{RBAC}", "", reference["name"])
        for rule in (role or {}).get("rules") or []:
            yield rule, source


class Aggregation:
    """Keep the rules of aggregating ClusterRoles equal to those of the roles that they select."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.on_change(self._changed)

    def _changed(self, storage: str, change: Change) -> None:
        if storage != _ROLES:
            return
        for role in self._store.all(_ROLES):
            if role.get("aggregationRule"):
                rules = self._rules(role)
                if rules != (role.get("rules") or []):
                    self._store.put(_ROLES, {**role, "metadata": dict(role["metadata"]), "rules": rules})

    def _rules(self, role: Obj) -> list[Obj]:
        found: list[Obj] = []
        selectors = role["aggregationRule"].get("clusterRoleSelectors") or []
        for other in self._store.all(_ROLES):
            labels = other["metadata"].get("labels") or {}
            if other["metadata"]["name"] != role["metadata"]["name"] and any(
                match_label_selector(s, labels) for s in selectors
            ):
                found += [r for r in other.get("rules") or [] if r not in found]
        return found


def _binds(binding: Obj, user: User, namespace: str) -> bool:
    for subject in binding.get("subjects") or []:
        match subject.get("kind"):
            case "User" if subject["name"] == user.name:
                return True
            case "Group" if subject["name"] in user.groups:
                return True
            case "ServiceAccount":
                space = subject.get("namespace") or namespace
                if user.name == f"system:serviceaccount:{space}:{subject['name']}":
                    return True
            case _:
                continue
    return False


def _covers(rule: Obj, ask: Ask) -> bool:
    verbs = rule.get("verbs") or []
    if "*" not in verbs and ask.verb not in verbs:
        return False
    if not ask.resource:
        return any(_path_fits(p, ask.path) for p in rule.get("nonResourceURLs") or [])
    groups, resources = rule.get("apiGroups") or [], rule.get("resources") or []
    if "*" not in groups and ask.group not in groups:
        return False
    _, _, sub = ask.resource.partition("/")
    if not ({"*", ask.resource} & set(resources) or (sub and f"*/{sub}" in resources)):
        return False
    names = rule.get("resourceNames") or []
    return not names or ask.name in names


def _path_fits(pattern: str, path: str) -> bool:
    return pattern in {"*", path} or (pattern.endswith("*") and path.startswith(pattern[:-1]))


def refusal(user: User, ask: Ask) -> ApiError:
    """Return the 403 for a question that was answered with no."""
    if not ask.resource:
        return ApiError(403, "Forbidden", f'forbidden: User "{user.name}" cannot {ask.verb} path "{ask.path}"', {})
    plural, _, _ = ask.resource.partition("/")
    where = f' in the namespace "{ask.namespace}"' if ask.namespace else " at the cluster scope"
    why = f'User "{user.name}" cannot {ask.verb} resource "{ask.resource}" in API group "{ask.group}"{where}'
    return forbidden(plural, ask.group, ask.name, why)
