"""Run the controller: what a cluster's Deployment starts."""

from __future__ import annotations

import asyncio
import sys

import typer

from orchestrator.cli.parts import controller_options as options

app = typer.Typer(help="Run the controller: what a cluster's Deployment starts.")


@app.command()
def controller(
    kubeconfig: options.Kubeconfig = None,
    context: options.Context = None,
    namespace: options.Namespace = "tidemark-system",
    metrics_address: options.MetricsAddress = "0.0.0.0:8080",
    leader_elect: options.LeaderElect = True,
    lease_duration: options.LeaseDuration = 15.0,
    resync: options.Resync = 60.0,
    workers: options.Workers = 8,
    max_movers: options.MaxMovers = 4,
    max_movers_per_node: options.MaxMoversPerNode = 2,
    max_movers_per_driver: options.MaxMoversPerDriver = 4,
    max_movers_per_repository: options.MaxMoversPerRepository = 4,
    mover_image: options.MoverImage = "tidemark",
    mover_service_account: options.MoverServiceAccount = "tidemark-mover",
    mover_run_as_user: options.MoverRunAsUser = 0,
    mover_memory: options.MoverMemory = "384Mi",
    mover_cpu: options.MoverCpu = "1",
    mover_attempts: options.MoverAttempts = 5,
    snapshot_timeout: options.SnapshotTimeout = 600.0,
    clone_timeout: options.CloneTimeout = 600.0,
    mover_stall: options.MoverStall = 1800.0,
    maintenance_deadline: options.MaintenanceDeadline = 21600.0,
    service_account: options.ServiceAccount = "tidemark-controller",
    log_level: options.LogLevel = "info",
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
