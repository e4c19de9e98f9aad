"""What a person types: one thin file per command.

Every module here except `main` is a command: its file name is the command's name (an underscore becomes a dash), the
first line of its docstring is its line in `tidemark --help`, and its `app` (a `typer.Typer`) is what runs; those in
`main.PLAIN` parse their line themselves, because they are timed. It is imported only when it runs. A command reads
options, calls its room and prints; it must never decide anything. Errors leave by raising: `main` turns them into one
line and an exit code. What several commands print or parse alike is in `cli/parts/`.
"""
