"""Slices of what makes up a cluster: definitions, leases, accounts, configuration."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from orchestrator.api.foreign.core import Part
from orchestrator.api.meta import Condition, K8sObject, Resource, condition


class DefinitionStatus(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A CRD's status."""

    conditions: tuple[Condition, ...] = ()


class CustomResourceDefinition(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A kind's definition."""

    RESOURCE: ClassVar[Resource] = Resource(
        "apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False
    )

    status: DefinitionStatus = DefinitionStatus()

    @property
    def established(self) -> bool:
        """Return whether the kind is served."""
        found = condition(self.status.conditions, "Established")
        return found is not None and found.status == "True"


class LeaseSpec(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Who leads, and since when."""

    holder_identity: str | None = None
    renew_time: datetime | None = None


class LeaseObject(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A lease, as others see it. `kube/lease` holds ours."""

    RESOURCE: ClassVar[Resource] = Resource("coordination.k8s.io", "v1", "Lease", "leases", namespaced=True)

    spec: LeaseSpec = LeaseSpec()


class ServiceAccount(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An account."""

    RESOURCE: ClassVar[Resource] = Resource("", "v1", "ServiceAccount", "serviceaccounts", namespaced=True)


class ConfigMap(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Configuration."""

    RESOURCE: ClassVar[Resource] = Resource("", "v1", "ConfigMap", "configmaps", namespaced=True)

    data: dict[str, str] = {}


class ClusterRole(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Rules."""

    RESOURCE: ClassVar[Resource] = Resource(
        "rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", namespaced=False
    )


class ClusterRoleBinding(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Who has them."""

    RESOURCE: ClassVar[Resource] = Resource(
        "rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", namespaced=False
    )
