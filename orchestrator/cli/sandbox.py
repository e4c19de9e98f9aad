"""Run a whole cluster on this machine: API server, storage with snapshots and CBT, nodes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from orchestrator.sandbox.api import Api

T = TypeVar("T")

app = typer.Typer(
    help="Run a whole cluster on this machine: API server, storage with snapshots and CBT, nodes.",
    invoke_without_command=True,
    add_completion=False,
)

Directory = Annotated[Path | None, typer.Option("--dir", metavar="DIR", help="The sandbox's directory.")]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(envvar="KUBECONFIG", metavar="FILE", help="How to reach the cluster; without it DIR/kubeconfig."),
]
Namespace = Annotated[str, typer.Option("--namespace", "-n", metavar="NS", help="The namespace.")]


@app.callback()
def sandbox(
    context: typer.Context,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Everything of the cluster; started on it again, it carries on."),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, max=26, help="Nodes, each in a zone of its own.")] = 1,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The API server's port; 0 takes a free one.")] = 0,
) -> None:
    """Run a whole cluster on this machine, in the foreground, until Ctrl-C.

    Storage class, snapshot class: `sandbox` (and `sandbox-wffc`); driver: sandbox.csi.tidemark.dev. Pods are local
    processes. Real kubectl works: KUBECONFIG=DIR/kubeconfig kubectl get pods.
    """
    if context.invoked_subcommand is not None:
        return
    if directory is None:
        raise typer.BadParameter("say where the cluster lives, as in --dir ./sandbox", param_hint="--dir")
    asyncio.run(_run(directory, nodes, port))


async def _run(directory: Path, nodes: int, port: int) -> None:
    import signal
    from contextlib import suppress

    from orchestrator.sandbox.cluster import Sandbox

    cluster = Sandbox(directory, nodes=nodes, port=port)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(cluster.run(), name="sandbox")
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, running.cancel)
        ready = tasks.create_task(_say_ready(cluster.ready, cluster.kubeconfig))
        with suppress(asyncio.CancelledError):
            await asyncio.wait({running})
        ready.cancel()


async def _say_ready(ready: asyncio.Event, kubeconfig: Path) -> None:
    await ready.wait()
    print(f"The sandbox is ready: export KUBECONFIG={kubeconfig}", flush=True)


@app.command()
def path(
    claim: Annotated[str, typer.Argument(metavar="PVC", help="The claim.")],
    namespace: Namespace = "default",
    directory: Directory = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the file behind a volume, so that anything can write to it."""
    from orchestrator.sandbox.reach import volume_path

    print(_ask(directory, kubeconfig, lambda api: volume_path(api, claim, namespace)))


@app.command()
def kill(
    pod: Annotated[str, typer.Argument(metavar="POD", help="The pod.")],
    namespace: Namespace = "default",
    directory: Directory = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Kill a pod's processes at once (SIGKILL), as a crash would."""
    from orchestrator.sandbox.reach import kill_pod

    home = directory or _kubeconfig(directory, kubeconfig).parent
    hit = _ask(directory, kubeconfig, lambda api: kill_pod(api, home.resolve(), pod, namespace))
    print(f"killed {', '.join(hit)} of pod {namespace}/{pod}")


@app.command()
def fault(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The fault or setting.")] = None,
    off: Annotated[bool, typer.Option("--off", help="Switch it off.")] = False,
    value: Annotated[str, typer.Option(metavar="VALUE", help="Its value, where it has one.")] = "on",
    list_all: Annotated[bool, typer.Option("--list", help="Show all faults, and which are on.")] = False,
    directory: Directory = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Switch a fault on or off while the sandbox runs."""
    from orchestrator.sandbox.faults import FAULTS, UnknownFault, switch, switched_on

    if list_all or name is None:
        from orchestrator.cli.parts.output import table

        on = _ask(directory, kubeconfig, switched_on) if _reachable(directory, kubeconfig) else {}
        table(("FAULT", "NOW", "WHAT"), [(f.name, on.get(f.name, "-"), f.says) for f in FAULTS.values()])
        return
    if name not in FAULTS:
        raise UnknownFault(f"There is no fault {name!r}")
    _ask(directory, kubeconfig, lambda api: switch(api, name, None if off else value))
    print(f"{name}: {'off' if off else value}")


def _reachable(directory: Path | None, kubeconfig: Path | None) -> bool:
    return directory is not None or kubeconfig is not None or bool(os.environ.get("KUBECONFIG"))


def _kubeconfig(directory: Path | None, kubeconfig: Path | None) -> Path:
    if directory is not None:
        return directory / "kubeconfig"
    if kubeconfig is None:
        raise typer.BadParameter("give the sandbox's directory, or a kubeconfig", param_hint="--dir")
    return kubeconfig


def _ask(directory: Path | None, kubeconfig: Path | None, question: Callable[[Api], Awaitable[T]]) -> T:
    from orchestrator.sandbox.api import Api

    async def ask() -> T:
        async with Api.from_file(_kubeconfig(directory, kubeconfig)) as api:
            return await question(api)

    return asyncio.run(ask())
