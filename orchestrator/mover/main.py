"""Start a mover: read what it is told, run its task, say how it ended.

The exit code says whether another pod may do better (75), can't (65), or needn't (0). SIGTERM stops the work in bounded
time; what is stored by then is found again by the next pod. What the loop needs is imported once the configuration
says what the work is.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from orchestrator.api.mover import EXIT_OK, EXIT_RETRYABLE, EXIT_TERMINAL, MoverConfig, MoverOutcome, Progress
from orchestrator.errors import Retryable, TidemarkError
from orchestrator.mover.arguments import Arguments, parse, read_config
from orchestrator.mover.report import Reporter, log, write_outcome
from orchestrator.observe.log import redact, redact_key, redact_options, setup
from orchestrator.repository.keys import NamespaceKeys
from orchestrator.sparing import asyncio_without_tls

STOPPED = MoverOutcome(ok=False, reason="Interrupted", message="told to stop", retryable=True)
Run = Callable[[MoverConfig, Arguments, Reporter], Awaitable[MoverOutcome]]


class _StoppedEarly(BaseException):
    """SIGTERM came before the loop could take it."""


def _stop_early(_number: int, _frame: object) -> None:
    raise _StoppedEarly


def main(argv: Sequence[str]) -> int:
    """Run one mover; return its exit code."""
    arguments = parse(argv)
    setup()
    reporter = Reporter()
    started = time.monotonic()
    try:
        signal.signal(signal.SIGTERM, _stop_early)
        reporter.tell(Progress(stage="starting"))
        config = read_config(arguments)
        strike_secrets(config)
        if not config.lock_retention_s:  # the client that sets locks is asyncio's; all else goes through Rust
            asyncio_without_tls()
        import asyncio

        outcome = asyncio.run(_run(config, arguments, reporter))
    except TidemarkError as error:
        outcome = failed(error)
    except _StoppedEarly:
        outcome = STOPPED
    except MemoryError:
        outcome = MoverOutcome(ok=False, reason="OutOfMemory", message="not enough memory", retryable=True)
    except Exception as error:  # noqa: BLE001  # whatever it is, the controller must learn that this pod ended by it
        log.critical("unexpected %s", type(error).__name__, exc_info=True)
        outcome = MoverOutcome(ok=False, reason="InternalError", message=type(error).__name__, retryable=True)
    outcome = msgspec.structs.replace(outcome, seconds=round(time.monotonic() - started, 3))
    write_outcome(arguments.termination_log, outcome)
    if not outcome.ok:
        log.error("%s ended: %s: %s", arguments.task, outcome.reason, outcome.message)
    return EXIT_OK if outcome.ok else EXIT_RETRYABLE if outcome.retryable else EXIT_TERMINAL


def strike_secrets(config: MoverConfig) -> None:
    """Have whatever secret the configuration holds struck from the log, before anything is done with it."""
    redact(config.keys)
    redact_options(config.store_options)
    keys = NamespaceKeys.from_json(config.keys)
    for key in (*keys.data_keys.values(), keys.chunk_id_key):
        redact_key(key)


def failed(error: TidemarkError) -> MoverOutcome:
    """Return the outcome of an error raised on purpose."""
    return MoverOutcome(
        ok=False, reason=type(error).reason, message=error.sentence(), retryable=isinstance(error, Retryable)
    )


def task_of(arguments: Arguments) -> Run:
    """Import and return what runs the task; the others stay unimported."""
    match arguments.task:
        case "backup":
            from orchestrator.mover.backup import run
        case "restore":
            from orchestrator.mover.restore import run
        case "maintain":
            from orchestrator.mover.maintain import run
        case "verify":
            from orchestrator.mover.verify import run
    return run


async def _run(config: MoverConfig, arguments: Arguments, reporter: Reporter) -> MoverOutcome:
    import asyncio

    run = task_of(arguments)
    loop = asyncio.get_running_loop()
    work = asyncio.ensure_future(run(config, arguments, reporter))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    speaker = loop.create_task(reporter.run(), name="progress")
    try:
        return await work
    except asyncio.CancelledError:
        return STOPPED
    except BaseExceptionGroup as group:
        expected = first_of(group)
        if expected is None:
            raise
        raise expected from group
    finally:
        speaker.cancel()
        reporter.tell()


def first_of(group: BaseExceptionGroup[BaseException]) -> TidemarkError | None:
    """Return the first error of a task group that was raised on purpose."""
    for error in group.exceptions:
        found = first_of(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, TidemarkError):
            return found
    return None
