"""Name the messages and stubs of `grpc.health.v1.Health`; metadata services register the empty service name only."""

from orchestrator.wire._generated.grpc.health.v1 import (
    HealthBase,
    HealthCheckRequest,
    HealthCheckResponse,
    HealthCheckResponseServingStatus,
    HealthStub,
)

__all__ = [
    "HealthBase",
    "HealthCheckRequest",
    "HealthCheckResponse",
    "HealthCheckResponseServingStatus",
    "HealthStub",
]
