"""A plan from 16.8 million changed ranges (1 TiB at 64 KiB), from messages as they come over the wire."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from typing import Any

from benchmarks._report import Row, size
from benchmarks._rivals import timed

TUPLES = 1 << 24
PER_MESSAGE = 4096


def run(args: Namespace) -> dict[str, Any]:
    """Measure in a process of its own: memory is the whole process's."""
    command = [sys.executable, "-m", "benchmarks.plan"]
    found = [json.loads(timed(command).output) for _ in range(args.rounds)]
    best: dict[str, Any] = min(found, key=lambda one: float(one["seconds"]))
    return {**best, "rounds": [one["seconds"] for one in found]}


def main() -> None:
    """Decode messages one after the other, round to chunks, set bits; print JSON."""
    from benchmarks.cbt_decode import encode
    from orchestrator.cbt.codec import decode
    from orchestrator.cli.parts.output import peak_memory
    from orchestrator.extents import ChunkSet, Extents
    from orchestrator.repository.layout import default_chunk_size

    volume_size = (1 << 35) + TUPLES * 65536
    chunks = ChunkSet(volume_size, default_chunk_size(volume_size))
    template, seconds, cpu = encode(1 << 35, PER_MESSAGE), 0.0, 0.0
    for at in range(0, TUPLES, PER_MESSAGE):
        message = encode((1 << 35) + at * 65536, PER_MESSAGE) if at else template
        started, used = time.perf_counter(), time.process_time()
        decoded = decode(message)
        chunks.add(Extents(decoded.offsets, decoded.sizes))
        seconds, cpu = seconds + time.perf_counter() - started, cpu + time.process_time() - used
    started = time.perf_counter()
    bits = chunks.to_bytes()
    seconds += time.perf_counter() - started
    figures = {
        "tuples": TUPLES,
        "chunks": len(chunks),
        "chunkSize": chunks.chunk_size,
        "bits": len(bits),
        "peakMemory": peak_memory(),
    }
    print(json.dumps({**figures, "seconds": round(seconds, 3), "cpuSeconds": round(cpu, 3)}))


def rows(figures: dict[str, Any]) -> list[Row]:
    """Return the table's lines."""
    seconds, peak = figures["seconds"], figures["peakMemory"]
    told = f"{seconds} s (to {max(figures['rounds'])}), {figures['cpuSeconds']} s of CPU; {figures['tuples']} ranges, "
    return [
        Row(
            "decode and plan",
            "< 8 s",
            told + f"{figures['chunks']} chunks of {size(figures['chunkSize'])}",
            seconds < 8,
        ),
        Row("peak memory of the process", "< 300 MiB", size(peak), peak < 300 << 20),
    ]


if __name__ == "__main__":
    main()
