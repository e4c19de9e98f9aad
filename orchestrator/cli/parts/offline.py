"""The options by which commands name a repository; `opening` opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.parts.opening import repository as repository
from orchestrator.cli.parts.opening import store_options as store_options

RepositoryUrl = Annotated[
    str,
    typer.Option(
        "--repository", metavar="URL", help="Where the repository is: file:///path, s3://bucket/prefix, gs://, az://."
    ),
]
KeyFile = Annotated[Path, typer.Option("--key-file", metavar="FILE", help="The master key: 32 bytes, hex or base64.")]
StoreOptions = Annotated[
    Path | None,
    typer.Option(
        "--store-options",
        metavar="FILE",
        help="Credentials and endpoint as `name=value` lines (default: AWS_*, GOOGLE_* or AZURE_* variables).",
    ),
]
