"""The options of `tidemark controller`: each with its environment variable, bounds and help.

Kept apart from the command so that it reads as what it does. What must never be here: a default. Those stand in the
command's signature, and a test holds them against `Settings`.
"""

from __future__ import annotations

import re
from typing import Annotated

import typer

_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")


def _quantity(value: str) -> str:
    """Refuse now what every mover pod would be refused for later."""
    if not _QUANTITY.fullmatch(value) or float(re.split("[a-zA-Z]", value)[0]) <= 0:
        raise typer.BadParameter(f"{value!r} is not a quantity above zero; write one such as 384Mi, 500m or 1")
    return value


Kubeconfig = Annotated[
    str | None,
    typer.Option(
        envvar="KUBECONFIG",
        metavar="FILE",
        help="How to reach the cluster; without it the pod's service account, else ~/.kube/config.",
    ),
]
Context = Annotated[str | None, typer.Option(metavar="NAME", help="The kubeconfig's context to use.")]
Namespace = Annotated[
    str,
    typer.Option(envvar="POD_NAMESPACE", metavar="NS", help="Where movers run and repository credentials live."),
]
MetricsAddress = Annotated[
    str,
    typer.Option(
        envvar="TIDEMARK_METRICS_ADDRESS", metavar="HOST:PORT", help="Where /metrics, /healthz, /readyz are served."
    ),
]
LeaderElect = Annotated[
    bool,
    typer.Option(
        envvar="TIDEMARK_LEADER_ELECT", help="Hold a Lease while working; only for experiments to go without."
    ),
]
LeaseDuration = Annotated[
    float,
    typer.Option(envvar="TIDEMARK_LEASE_DURATION", metavar="SECONDS", min=2, help="How long a lease lasts."),
]
Resync = Annotated[
    float,
    typer.Option(envvar="TIDEMARK_RESYNC", metavar="SECONDS", min=1, max=60, help="Look at everything this often."),
]
Workers = Annotated[int, typer.Option(envvar="TIDEMARK_WORKERS", min=1, max=64, help="Reconciles at once, per kind.")]
MaxMovers = Annotated[int, typer.Option(envvar="TIDEMARK_MAX_MOVERS", min=1, max=1024, help="Movers at once, in all.")]
MaxMoversPerNode = Annotated[
    int, typer.Option(envvar="TIDEMARK_MAX_MOVERS_PER_NODE", min=1, max=1024, help="Movers at once on one node.")
]
MaxMoversPerDriver = Annotated[
    int,
    typer.Option(
        envvar="TIDEMARK_MAX_MOVERS_PER_DRIVER", min=1, max=1024, help="Movers at once on one CSI driver's volumes."
    ),
]
MaxMoversPerRepository = Annotated[
    int,
    typer.Option(
        envvar="TIDEMARK_MAX_MOVERS_PER_REPOSITORY", min=1, max=1024, help="Movers at once on one repository."
    ),
]
MoverImage = Annotated[
    str, typer.Option(envvar="TIDEMARK_MOVER_IMAGE", metavar="IMAGE", help="The image that mover pods run.")
]
MoverServiceAccount = Annotated[
    str, typer.Option(envvar="TIDEMARK_MOVER_SERVICE_ACCOUNT", metavar="NAME", help="What mover pods run as.")
]
MoverRunAsUser = Annotated[
    int,
    typer.Option(
        envvar="TIDEMARK_MOVER_RUN_AS_USER",
        min=0,
        help="UID of mover pods; 0 because most runtimes give a block device to root only.",
    ),
]
MoverMemory = Annotated[
    str,
    typer.Option(
        envvar="TIDEMARK_MOVER_MEMORY",
        metavar="QUANTITY",
        callback=_quantity,
        help="Memory that a mover pod asks for and may use at most.",
    ),
]
MoverCpu = Annotated[
    str,
    typer.Option(
        envvar="TIDEMARK_MOVER_CPU", metavar="QUANTITY", callback=_quantity, help="CPU that a mover pod asks for."
    ),
]
MoverAttempts = Annotated[
    int,
    typer.Option(
        envvar="TIDEMARK_MOVER_ATTEMPTS", min=1, max=100, help="Mover pods tried before a point or restore fails."
    ),
]
SnapshotTimeout = Annotated[
    float,
    typer.Option(
        envvar="TIDEMARK_SNAPSHOT_TIMEOUT",
        metavar="SECONDS",
        min=1,
        help="A snapshot that isn't ready after this long fails the point.",
    ),
]
CloneTimeout = Annotated[
    float,
    typer.Option(
        envvar="TIDEMARK_CLONE_TIMEOUT",
        metavar="SECONDS",
        min=1,
        help="A clone that isn't there after this long is torn down, and its slot is given to another.",
    ),
]
MoverStall = Annotated[
    float,
    typer.Option(
        envvar="TIDEMARK_MOVER_STALL",
        metavar="SECONDS",
        min=60,
        help="A mover that gets nowhere for this long is replaced.",
    ),
]
MaintenanceDeadline = Annotated[
    float,
    typer.Option(
        envvar="TIDEMARK_MAINTENANCE_DEADLINE",
        metavar="SECONDS",
        min=60,
        help="A maintenance Job may run this long; the next slot does the rest.",
    ),
]
ServiceAccount = Annotated[
    str,
    typer.Option(
        envvar="TIDEMARK_SERVICE_ACCOUNT", metavar="NAME", help="The account whose tokens the CBT services get."
    ),
]
LogLevel = Annotated[str, typer.Option(envvar="TIDEMARK_LOG_LEVEL", help="debug, info, warning or error.")]
