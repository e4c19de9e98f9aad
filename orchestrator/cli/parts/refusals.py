"""Say a cluster's refusals as a person at a keyboard needs them: what is wrong with *their* way in, and what to do.

The words of `kube.errors` are written for the controller's conditions; here the reader is whoever typed the command.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from orchestrator.errors import Retryable, Terminal, TidemarkError

if TYPE_CHECKING:
    from orchestrator.kube.errors import ApiError, NotFound

OURS = "tidemark.dev"


class NoWayIn(Terminal):
    """The kubeconfig can't be used."""

    reason: ClassVar[str] = "NotConfigured"
    remedy: ClassVar[str] = "Give --kubeconfig FILE (and --context NAME), or set KUBECONFIG."


class NobodyAnswers(Retryable):
    """No API server is at the kubeconfig's address, or it is not the one that it should be."""

    reason: ClassVar[str] = "ApiServerUnavailable"
    remedy: ClassVar[str] = (
        "Check the server's address in the kubeconfig, the network or VPN, and that the cluster is up."
    )


class NotKnownThere(Terminal):
    """The API server does not accept our credentials."""

    reason: ClassVar[str] = "Unauthorized"
    remedy: ClassVar[str] = "They may have expired: log in again, or choose another --context."


class NotAllowed(Terminal):
    """The person may not do this."""

    reason: ClassVar[str] = "Forbidden"
    remedy: ClassVar[str] = "Ask an admin for a role: tidemark-view reads, tidemark-edit also creates."


class NotInstalled(Terminal):
    """The cluster does not have our kinds."""

    reason: ClassVar[str] = "NotInstalled"
    remedy: ClassVar[str] = "Apply charts/tidemark/crds/, or choose another --context; `tidemark doctor` says more."


class NotThere(Terminal):
    """An object or namespace that was named is not there."""

    reason: ClassVar[str] = "NotFound"
    remedy: ClassVar[str] = "Check the name and --namespace."


class NameTaken(Terminal):
    """An object of that name exists."""

    reason: ClassVar[str] = "AlreadyExists"
    remedy: ClassVar[str] = "Choose another name, or leave it out and one is made up."


class Refused(Terminal):
    """The API server found the object wrong."""

    reason: ClassVar[str] = "Invalid"
    remedy: ClassVar[str] = "Correct the option that it names."


def check_kubeconfig(kubeconfig: str | None) -> None:
    """Raise NoWayIn when the kubeconfig that was named is not there (a list of files: when none is)."""
    named = kubeconfig or os.environ.get("KUBECONFIG")
    if named and not any(Path(part).expanduser().is_file() for part in named.split(os.pathsep) if part):
        raise NoWayIn(f"There is no kubeconfig {named}")


def kind_missing(error: NotFound) -> bool:
    """Return whether it is the whole kind that is not there: no 404 about an object leaves its name out."""
    return f'"{error.target.name}" not found' not in str(error) and 'namespaces "' not in str(error)


def for_a_person(error: TidemarkError, host: str) -> TidemarkError:
    """Return the error to show instead; the same one when its words will do."""
    from orchestrator.kube import errors

    match error:
        case errors.Unavailable():
            return NobodyAnswers(f"No usable answer from the API server {host} ({_tail(error)})")
        case errors.Unauthorized():
            return NotKnownThere(f"{host} does not accept the kubeconfig's credentials")
        case errors.NamespaceTerminating() | errors.QuotaExceeded():
            return error
        case errors.Forbidden() if error.target.verb == "list" and not error.target.namespace:
            return NotAllowed(f"You may not {error.target} of all namespaces; give -n NS to see one ({_tail(error)})")
        case errors.Forbidden():
            return NotAllowed(f"You may not {error.target} ({_tail(error)})")
        case errors.NotFound() if 'namespaces "' in str(error):
            return NotThere(f"There is no namespace {error.target.namespace}")
        case errors.NotFound() if kind_missing(error) and error.target.resource.endswith(OURS):
            return NotInstalled(
                f"The cluster at {host} has no {error.target.resource}: Tidemark is not installed there"
            )
        case errors.NotFound():
            return NotThere(f"There is no {_noun(error)} {_where(error)}")
        case errors.AlreadyExists():
            return NameTaken(f"{_noun(error)} {_where(error)} exists already")
        case errors.Invalid():
            return Refused(f"The cluster refuses it: {_tail(error)}")
        case errors.NotConfigured() if "contexts list" in str(error):
            return NoWayIn("The kubeconfig has no such context")
        case errors.NotConfigured():
            return NoWayIn(str(error))
        case _:
            return error


def _noun(error: ApiError) -> str:
    """Return the kind as people write it; for other than our kinds the resource."""
    from orchestrator.api.tidemark import KINDS

    plural, _, group = error.target.resource.partition(".")
    return next((k.RESOURCE.kind for k in KINDS if group == OURS and k.RESOURCE.plural == plural), plural)


def _where(error: ApiError) -> str:
    return "/".join(part for part in (error.target.namespace, error.target.name) if part)


def _tail(error: ApiError) -> str:
    """Return the server's (or the network's) own words."""
    return str(error).removeprefix(f"{error.target}: ")
