"""Run the storage as a program of its own: `python -m orchestrator.sandbox.storage --kubeconfig FILE --dir DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.sandbox.program import run_part
from orchestrator.sandbox.storage.server import ROLES, Storage


def main() -> None:
    """Read the command line and run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="orchestrator.sandbox.storage")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--without", default="", help=f"roles to leave out, comma separated: {', '.join(ROLES)}")
    given = parser.parse_args()
    left_out = set(filter(None, given.without.split(",")))
    roles = [role for role in ROLES if role not in left_out]
    run_part(given.kubeconfig, lambda api: Storage(api, given.dir.resolve(), roles=roles))


if __name__ == "__main__":
    main()
