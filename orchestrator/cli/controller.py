"""Run the controller: what a cluster's Deployment starts."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Annotated

import typer

app = typer.Typer(help="Run the controller: what a cluster's Deployment starts.")

_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")


def _quantity(value: str) -> str:
    """Refuse now what every mover pod would be refused for later."""
    if not _QUANTITY.fullmatch(value) or float(re.split("[a-zA-Z]", value)[0]) <= 0:
        raise typer.BadParameter(f"{value!r} is not a quantity above zero; write one such as 384Mi, 500m or 1")
    return value


@app.command()
def controller(
    kubeconfig: Annotated[
        str | None,
        typer.Option(
            envvar="KUBECONFIG",
            metavar="FILE",
            help="How to reach the cluster; without it the pod's service account, else ~/.kube/config.",
        ),
    ] = None,
    context: Annotated[str | None, typer.Option(metavar="NAME", help="The kubeconfig's context to use.")] = None,
    namespace: Annotated[
        str,
        typer.Option(envvar="POD_NAMESPACE", metavar="NS", help="Where movers run and repository credentials live."),
    ] = "tidemark-system",
    metrics_address: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_METRICS_ADDRESS", metavar="HOST:PORT", help="Where /metrics, /healthz, /readyz are served."
        ),
    ] = "0.0.0.0:8080",
    leader_elect: Annotated[
        bool,
        typer.Option(
            envvar="TIDEMARK_LEADER_ELECT", help="Hold a Lease while working; only for experiments to go without."
        ),
    ] = True,
    lease_duration: Annotated[
        float,
        typer.Option(envvar="TIDEMARK_LEASE_DURATION", metavar="SECONDS", min=2, help="How long a lease lasts."),
    ] = 15.0,
    resync: Annotated[
        float,
        typer.Option(envvar="TIDEMARK_RESYNC", metavar="SECONDS", min=1, max=60, help="Look at everything this often."),
    ] = 60.0,
    workers: Annotated[
        int, typer.Option(envvar="TIDEMARK_WORKERS", min=1, max=64, help="Reconciles at once, per kind.")
    ] = 8,
    max_movers: Annotated[
        int, typer.Option(envvar="TIDEMARK_MAX_MOVERS", min=1, max=1024, help="Movers at once, in all.")
    ] = 4,
    max_movers_per_node: Annotated[
        int, typer.Option(envvar="TIDEMARK_MAX_MOVERS_PER_NODE", min=1, max=1024, help="Movers at once on one node.")
    ] = 2,
    max_movers_per_driver: Annotated[
        int,
        typer.Option(
            envvar="TIDEMARK_MAX_MOVERS_PER_DRIVER", min=1, max=1024, help="Movers at once on one CSI driver's volumes."
        ),
    ] = 4,
    max_movers_per_repository: Annotated[
        int,
        typer.Option(
            envvar="TIDEMARK_MAX_MOVERS_PER_REPOSITORY", min=1, max=1024, help="Movers at once on one repository."
        ),
    ] = 4,
    mover_image: Annotated[
        str, typer.Option(envvar="TIDEMARK_MOVER_IMAGE", metavar="IMAGE", help="The image that mover pods run.")
    ] = "tidemark",
    mover_service_account: Annotated[
        str, typer.Option(envvar="TIDEMARK_MOVER_SERVICE_ACCOUNT", metavar="NAME", help="What mover pods run as.")
    ] = "tidemark-mover",
    mover_run_as_user: Annotated[
        int,
        typer.Option(
            envvar="TIDEMARK_MOVER_RUN_AS_USER",
            min=0,
            help="UID of mover pods; 0 because most runtimes give a block device to root only.",
        ),
    ] = 0,
    mover_memory: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_MOVER_MEMORY",
            metavar="QUANTITY",
            callback=_quantity,
            help="Memory that a mover pod asks for and may use at most.",
        ),
    ] = "384Mi",
    mover_cpu: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_MOVER_CPU", metavar="QUANTITY", callback=_quantity, help="CPU that a mover pod asks for."
        ),
    ] = "1",
    mover_attempts: Annotated[
        int,
        typer.Option(
            envvar="TIDEMARK_MOVER_ATTEMPTS", min=1, max=100, help="Mover pods tried before a point or restore fails."
        ),
    ] = 5,
    snapshot_timeout: Annotated[
        float,
        typer.Option(
            envvar="TIDEMARK_SNAPSHOT_TIMEOUT",
            metavar="SECONDS",
            min=1,
            help="A snapshot that isn't ready after this long fails the point.",
        ),
    ] = 600.0,
    clone_timeout: Annotated[
        float,
        typer.Option(
            envvar="TIDEMARK_CLONE_TIMEOUT",
            metavar="SECONDS",
            min=1,
            help="A clone that isn't there after this long is torn down, and its slot is given to another.",
        ),
    ] = 600.0,
    mover_stall: Annotated[
        float,
        typer.Option(
            envvar="TIDEMARK_MOVER_STALL",
            metavar="SECONDS",
            min=60,
            help="A mover that gets nowhere for this long is replaced.",
        ),
    ] = 1800.0,
    maintenance_deadline: Annotated[
        float,
        typer.Option(
            envvar="TIDEMARK_MAINTENANCE_DEADLINE",
            metavar="SECONDS",
            min=60,
            help="A maintenance Job may run this long; the next slot does the rest.",
        ),
    ] = 21600.0,
    service_account: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_SERVICE_ACCOUNT", metavar="NAME", help="The account whose tokens the CBT services get."
        ),
    ] = "tidemark-controller",
    log_level: Annotated[
        str, typer.Option(envvar="TIDEMARK_LOG_LEVEL", help="debug, info, warning or error.")
    ] = "info",
) -> None:
    """Watch policies and keep volumes recoverable, until SIGTERM.

    Every option can also be given by the environment variable beside it. Ends with 0 after SIGTERM, 65 when it can't
    work until somebody changes something, 75 when it is to be started again.
    """
    from orchestrator import app as house
    from orchestrator.app.inhabitants import inhabitants  # before the loop runs: it takes a second
    from orchestrator.config import Settings
    from orchestrator.observe import log

    try:
        log.setup(log_level, json=not sys.stderr.isatty())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    settings = Settings(
        namespace=namespace,
        service_account=service_account,
        mover_image=mover_image,
        mover_run_as_user=mover_run_as_user,
        mover_service_account=mover_service_account,
        mover_memory=mover_memory,
        mover_cpu=mover_cpu,
        mover_attempts=mover_attempts,
        max_movers=max_movers,
        max_movers_per_node=max_movers_per_node,
        max_movers_per_driver=max_movers_per_driver,
        max_movers_per_repository=max_movers_per_repository,
        snapshot_timeout_s=snapshot_timeout,
        clone_timeout_s=clone_timeout,
        mover_stall_s=mover_stall,
        maintenance_deadline_s=maintenance_deadline,
        workers=workers,
        resync_s=resync,
        lease_duration_s=lease_duration,
        lease_renew_s=lease_duration * 2 / 3,
        metrics_address=metrics_address,
        leader_elect=leader_elect,
    )
    asyncio.run(house.run(settings, kubeconfig=kubeconfig, kube_context=context, build=inhabitants))
