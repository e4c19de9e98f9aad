"""One request on one resource: what is asked, by whom, and the warnings that go back with the answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.sandbox.apiserver.registry import Kind
from orchestrator.sandbox.apiserver.requests import RequestInfo
from orchestrator.sandbox.apiserver.status import bad_request, invalid, invalid_value


@dataclass(frozen=True)
class User:
    """Who calls; `extra` carries what a service-account token says about its pod."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Call:
    """A resource request on its way through the server."""

    info: RequestInfo
    kind: Kind
    user: User
    user_agent: str = ""
    content_type: str = ""
    warnings: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    """Fields that the body gives more than once."""

    @property
    def namespace(self) -> str:
        return self.info.namespace if self.kind.namespaced else ""

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def manager(self) -> str:
        """Return the field manager: as named, else the first word of the user agent."""
        named = self.info.query.get("fieldManager", "")
        if len(named) > 128:
            raise invalid(
                "PatchOptions", "meta.k8s.io", "", [invalid_value("fieldManager", named, "may not be longer than 128")]
            )
        return named or self.user_agent.split("/", 1)[0][:128] or "unknown"

    @property
    def field_validation(self) -> str:
        chosen = self.info.query.get("fieldValidation", "") or "Warn"
        if chosen not in {"Strict", "Warn", "Ignore"}:
            raise bad_request(
                f'fieldValidation: Unsupported value: "{chosen}": supported values: "Ignore", "Strict", "Warn"'
            )
        return chosen

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
