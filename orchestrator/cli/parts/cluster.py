"""Talk to a cluster: options that every cluster command shares, and waiting for an object with a progress line."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from orchestrator.errors import Retryable, Terminal, TidemarkError

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
LONGEST_NAME = 253
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


class NotDoneInTime(Retryable):
    """What was waited for has not ended yet."""

    reason = "NotDoneInTime"
    remedy = "It goes on in the cluster; look again later."


class EndedBadly(Terminal):
    """What was waited for ended, and not well."""

    reason = "EndedBadly"
    remedy = ""


def check_output(output: str) -> None:
    """Refuse any output format but text and json, as wrong usage."""
    if output not in ("text", "json"):
        raise typer.BadParameter(f"there is no output format {output!r}; use text or json", param_hint="--output")


def check_name(name: str | None, option: str) -> None:
    """Refuse what can't be an object's name, as wrong usage."""
    if name is not None and (len(name) > LONGEST_NAME or not _NAME.fullmatch(name)):
        raise typer.BadParameter(
            f"{name!r} can't be a name: lower-case letters, digits, '-' and '.', at most {LONGEST_NAME} of them",
            param_hint=option,
        )


@contextlib.asynccontextmanager
async def cluster(kubeconfig: str | None, context: str | None) -> AsyncIterator[Client]:
    """Open the API server for as long as the block lasts; what it refuses is said for a person."""
    from orchestrator.cli.parts.refusals import check_kubeconfig, for_a_person
    from orchestrator.kube.client import Client

    check_kubeconfig(kubeconfig)
    host = "of the kubeconfig"
    try:
        async with await Client.connect(kubeconfig=kubeconfig, context=context, field_manager="tidemark-cli") as client:
            host = client.host
            yield client
    except TidemarkError as error:
        raise for_a_person(error, host) from error


async def known(client: Client, kind: type[T], name: str, namespace: str) -> T:
    """Return what a command names; raises NotThere with the command that lists what is there."""
    from orchestrator.cli.parts.refusals import NotThere, kind_missing
    from orchestrator.kube.errors import NotFound

    try:
        return await client.get(kind, name, namespace)
    except NotFound as error:
        if kind_missing(error):
            raise
        what = {"Backup": "backups", "BackupPolicy": "policies"}.get(kind.RESOURCE.kind, "points")
        also = "" if what != "points" else ", and with --repository REPO the points whose records are gone"
        raise NotThere(
            f"There is no {kind.RESOURCE.kind} {namespace}/{name}: "
            f"`tidemark get {what} -n {namespace}` shows what is there{also}"
        ) from error


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
    """Wait until `ended(obj)` is "" (well) or says what went wrong; tells `tell(obj)` on stderr meanwhile.

    An API server that does not answer for a while is waited out. Raises NotDoneInTime, EndedBadly.
    """
    from orchestrator.kube.errors import NotFound

    what, said = f"{kind.RESOURCE.kind} {namespace}/{name}", "not looked at yet"
    try:
        async with asyncio.timeout(timeout_s):
            with _teller() as show:
                while True:
                    try:
                        obj = await client.get(kind, name, namespace)
                    except NotFound as error:
                        raise EndedBadly(f"{what} was deleted while it was waited for") from error
                    except Retryable as error:
                        said = str(error)
                    else:
                        verdict, said = ended(obj), tell(obj)
                        if verdict == "":
                            return obj
                        if verdict is not None:
                            raise EndedBadly(verdict)
                    show(said)
                    await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise NotDoneInTime(f"{what} has not ended within {timeout_s:.0f} s (last: {said})") from error


@contextlib.contextmanager
def _teller() -> Iterator[Callable[[str], None]]:
    """Give what shows a line of progress: in place on a terminal, elsewhere a line of its own whenever it changes."""
    if not sys.stderr.isatty():
        last = ""

        def line(text: str) -> None:
            nonlocal last
            if text != last:
                print(text, file=sys.stderr, flush=True)
            last = text

        yield line
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("waiting") as status:
        yield lambda text: status.update(escape(text))


def age(instant: Any, now: Any) -> str:
    """Return how long ago an instant was, as kubectl writes it; "" for none."""
    if instant is None:
        return ""
    seconds = max(int((now - instant).total_seconds()), 0)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
