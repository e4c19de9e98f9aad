"""Talk to a cluster: options that every cluster command shares, and waiting for an object with a progress line."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from orchestrator.errors import Retryable, Terminal

if TYPE_CHECKING:
    from orchestrator.api.meta import K8sObject
    from orchestrator.kube.client import Client

    T = TypeVar("T", bound=K8sObject)

KubeConfig = Annotated[
    str | None, typer.Option("--kubeconfig", envvar="KUBECONFIG", metavar="FILE", help="How to reach the cluster.")
]
KubeContext = Annotated[str | None, typer.Option("--context", metavar="NAME", help="The kubeconfig's context.")]
NamespaceOption = Annotated[str, typer.Option("--namespace", "-n", metavar="NS", help="The namespace.")]
Output = Annotated[str, typer.Option("--output", "-o", help="`text` or `json`.")]
POLL_S = 0.5


class NotDoneInTime(Retryable):
    """What was waited for has not ended yet."""

    reason = "NotDoneInTime"
    remedy = "It goes on in the cluster; look again later."


class EndedBadly(Terminal):
    """What was waited for ended, and not well."""

    reason = "EndedBadly"
    remedy = ""


class WrongOutput(Terminal):
    """An output format that there isn't."""

    reason = "WrongOutput"
    remedy = "Use `text` or `json`."


def check_output(output: str) -> None:
    """Raise WrongOutput for anything but text and json."""
    if output not in ("text", "json"):
        raise WrongOutput(f"There is no output format {output!r}")


@contextlib.asynccontextmanager
async def cluster(kubeconfig: str | None, context: str | None) -> AsyncIterator[Client]:
    """Open the API server for as long as the block lasts."""
    from orchestrator.kube.client import Client

    async with await Client.connect(kubeconfig=kubeconfig, context=context, field_manager="tidemark-cli") as client:
        yield client


async def wait_for(
    client: Client,
    kind: type[T],
    name: str,
    namespace: str,
    *,
    timeout_s: float,
    ended: Callable[[T], str | None],
    tell: Callable[[T], str],
) -> T:
    """Wait until `ended(obj)` is "" (well) or says what went wrong; shows `tell(obj)` meanwhile on a terminal.

    Raises NotDoneInTime, EndedBadly, NotFound.
    """
    from rich.console import Console

    console = Console(stderr=True)
    shown = console.status("waiting") if console.is_terminal else contextlib.nullcontext()
    try:
        async with asyncio.timeout(timeout_s):
            with shown as status:
                while True:
                    obj = await client.get(kind, name, namespace)
                    if status is not None:
                        status.update(tell(obj))
                    verdict = ended(obj)
                    if verdict == "":
                        return obj
                    if verdict is not None:
                        raise EndedBadly(verdict)
                    await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise NotDoneInTime(
            f"{kind.RESOURCE.kind} {namespace}/{name} has not ended within {timeout_s:.0f} s"
        ) from error


def manifests(objects: Iterable[K8sObject]) -> list[dict[str, Any]]:
    """Return objects as JSON-able data."""
    return [obj.to_manifest() for obj in objects]


def age(instant: Any, now: Any) -> str:
    """Return how long ago an instant was, as kubectl writes it; "" for none."""
    if instant is None:
        return ""
    seconds = max(int((now - instant).total_seconds()), 0)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
