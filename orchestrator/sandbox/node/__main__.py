"""Run the nodes as a program of their own: `python -m orchestrator.sandbox.node --kubeconfig FILE --dir DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.sandbox.node.isolation import Isolation, NotIsolable
from orchestrator.sandbox.node.server import ROLES, Nodes
from orchestrator.sandbox.program import run_part


def main() -> None:
    """Read the command line and run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="orchestrator.sandbox.node")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--zones", default="", help="one node for each of these zones, comma separated")
    parser.add_argument(
        "--kubelet-client-ca", type=Path, metavar="FILE", help="hand out logs over HTTPS to certificates of this CA"
    )
    parser.add_argument(
        "--isolate",
        action="store_true",
        help="give each container a file system, user and rights of its own, as its security context says (as root)",
    )
    parser.add_argument(
        "--share",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder that isolated containers see too",
    )
    parser.add_argument("--without", default="", help=f"roles to leave out, comma separated: {', '.join(ROLES)}")
    given = parser.parse_args()
    left_out = set(filter(None, given.without.split(",")))
    roles = [role for role in ROLES if role not in left_out]
    zones = list(filter(None, given.zones.split(",")))
    directory = given.dir.resolve()
    try:
        isolation = Isolation.make(directory, [folder.resolve() for folder in given.share]) if given.isolate else None
    except NotIsolable as err:
        parser.error(f"{err}. {err.remedy}")
    run_part(
        given.kubeconfig,
        lambda api: Nodes(
            api,
            directory,
            count=given.nodes,
            zones=zones,
            roles=roles,
            kubelet_client_ca=given.kubelet_client_ca,
            isolation=isolation,
        ),
    )


if __name__ == "__main__":
    main()
