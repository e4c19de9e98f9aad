"""Run the metadata service as a program: `python -m orchestrator.sandbox.snapshotmetadata --kubeconfig F --dir D`."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.sandbox.program import run_part
from orchestrator.sandbox.snapshotmetadata.server import MetadataServer


def main() -> None:
    """Read the command line and run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="orchestrator.sandbox.snapshotmetadata")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--dir", type=Path, required=True, help="the storage's directory")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--block-size", type=int, default=65536, metavar="BYTES")
    parser.add_argument("--fixed", action="store_true", help="report FIXED_LENGTH ranges")
    given = parser.parse_args()
    run_part(
        given.kubeconfig,
        lambda api: MetadataServer(
            api, given.dir.resolve(), block_bytes=given.block_size, fixed=given.fixed, port=given.port
        ),
    )


if __name__ == "__main__":
    main()
