"""A mover does its task as a process: told by a file, telling by lines, a message and an exit code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.api.mover import MoverOutcome
from orchestrator.mover.report import encode_outcome
from orchestrator.repository.keys import NamespaceKeys
from orchestrator.repository.vault import Vault
from tests.blocks.volumes import CHUNK, Volume, announce, give_back, run, take, vault_at
from tests.mover.movers import ROOT, Pod, end

SIZE = 300 * CHUNK + 777


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path / "volume", SIZE)
    volume.scatter(0.5)
    return volume


@pytest.fixture
async def vault(tmp_path: Path) -> Vault:
    return await vault_at(tmp_path / "repository")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'repository'}"


async def test_a_backup_and_a_restore_by_real_processes(tmp_path: Path, vault: Vault, url: str, volume: Volume) -> None:
    # given a planned point
    intent_id = await announce(vault, volume.path, None)
    # when one process copies it and another one restores it onto a used, larger device
    pod = Pod.make(tmp_path, vault, url, "backup", intent_id, volume.path)
    code, lines, log = end(pod.start())
    outcome = pod.outcome()
    device = tmp_path / "device"
    device.write_bytes(b"old!" * (SIZE // 4 + 1000))
    place = {"manifest_key": outcome["manifestKey"], "manifest_digest": outcome["manifestDigest"]}
    back = Pod.make(tmp_path, vault, url, "restore", "restore-uid", device, **place)
    back_code, back_lines, back_log = end(back.start())
    # then both say how far they are, end well, and the device holds the volume
    assert code == 0, log
    assert back_code == 0, back_log
    assert outcome["ok"]
    assert outcome["read"] == SIZE
    assert [lines[0]["stage"], lines[-1]["stage"]] == ["starting", "done"]
    assert lines[-1]["done"] == lines[-1]["total"] == SIZE
    assert [back_lines[0]["stage"], back_lines[-1]["stage"]] == ["starting", "done"]
    assert back.outcome()["ok"]
    content = volume.path.read_bytes()
    assert device.read_bytes() == content + bytes(device.stat().st_size - SIZE)
    # and the digest of the whole volume is told only when it is asked for
    assert "sha256" not in back.outcome()
    asked = Pod.make(tmp_path, vault, url, "restore", "restore-uid", device, sha256=True, **place)
    code, _, log = end(asked.start())
    assert code == 0, log
    assert asked.outcome()["sha256"] == volume.sha256()


async def test_a_mover_imports_nothing_that_only_others_need(
    tmp_path: Path, vault: Vault, url: str, volume: Volume
) -> None:
    # given a planned point, run inside one interpreter that looks at its modules afterwards
    intent_id = await announce(vault, volume.path, None)
    pod = Pod.make(tmp_path, vault, url, "backup", intent_id, volume.path)
    script = (
        "import sys; from orchestrator.__main__ import main; code = main(); "
        "sys.stderr.write('\\nMODULES ' + ' '.join(sorted(sys.modules))); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, "mover", "backup", "--point", intent_id, "--config", str(pod.config)]
    command += ["--device", str(volume.path), "--termination-log", str(pod.log)]
    # when it ran
    pipe = subprocess.PIPE
    code, _, log = end(subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True))  # noqa: ASYNC220  # fine here
    # then nothing of the command line, of Kubernetes, of object storage or of numpy is there
    assert code == 0, log
    modules = set(log.rpartition("MODULES ")[2].split())
    unwanted = {"typer", "rich", "click", "kubernetes_asyncio", "aiohttp", "numpy", "obstore", "grpclib", "yaml"}
    assert modules & unwanted == set()
    # and nothing that a library imports only in passing
    assert modules & {"ssl", "typing_extensions", "platform", "shutil", "dataclasses", "hashlib"} == set()
    assert modules & {"gettext", "ntpath", "msgspec.inspect"} == set()
    assert "cryptography.hazmat.primitives.ciphers" not in modules
    assert not {name for name in modules if name.startswith(("orchestrator.cli", "orchestrator.kube"))}
    assert not {name for name in modules if name.startswith("orchestrator.api.") and "mover" not in name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config.pop("keys"), "missing required field `keys`"),
        (lambda config: config.update(task="restore"), "is for restore, not for backup"),
        (lambda config: config.update(point="another"), "is for another, not for 1111"),
        (lambda config: config.update(version=2), "version"),
        (lambda config: config.update(surprise=1), "unknown field `surprise`"),
        (lambda config: config.update(bandwidthLimit=0), "would never finish"),
        (lambda config: config.update(iopsLimit=0), "would never finish"),
        (lambda config: config.update(readers=0), "0 readers"),
    ],
)
async def test_a_bad_configuration_is_named_and_never_quoted(
    tmp_path: Path, vault: Vault, url: str, volume: Volume, change, said: str
) -> None:
    pod = Pod.make(tmp_path, vault, url, "backup", "11111111-1111-1111-1111-111111111111", volume.path)
    config = json.loads(pod.config.read_bytes())
    secret = json.loads(config["keys"])["chunkIdKey"]
    change(config)
    pod.config.write_text(json.dumps(config))
    code, _, log = end(pod.start())
    assert code == 65
    assert pod.outcome()["reason"] == "MoverConfigBad"
    assert said in pod.outcome()["message"]
    assert secret not in log + pod.log.read_text()
    assert "Traceback" not in log


async def test_wrong_keys_are_a_terminal_error_and_nothing_is_written(
    tmp_path: Path, vault: Vault, url: str, volume: Volume
) -> None:
    intent_id = await announce(vault, volume.path, None)
    keys = vault.keys
    wrong = NamespaceKeys(keys.repository_id, keys.namespace_id, keys.namespace, 1, {1: bytes(32)}, bytes(32))
    before = sorted(path for path in (tmp_path / "repository").rglob("*"))
    pod = Pod.make(tmp_path, Vault.from_mover(vault.store, wrong), url, "backup", intent_id, volume.path)
    code, _, log = end(pod.start())
    assert code == 65
    assert "retryable" not in pod.outcome()
    assert "Traceback" not in log
    assert sorted(path for path in (tmp_path / "repository").rglob("*")) == before


async def test_sigterm_ends_a_mover_soon_and_the_next_one_carries_on(
    tmp_path: Path, vault: Vault, url: str, volume: Volume
) -> None:
    # given a mover slowed to a crawl
    intent_id = await announce(vault, volume.path, None)
    slow = Pod.make(tmp_path, vault, url, "backup", intent_id, volume.path, bandwidth_limit=SIZE // 60)
    process = slow.start()
    assert process.stdout is not None
    assert "starting" in process.stdout.readline()
    # when it is told to stop
    process.send_signal(signal.SIGTERM)
    code, _, _ = end(process, 10)
    # then it ends as one that another may follow, and the next does
    assert code == 75
    assert slow.outcome()["reason"] == "Interrupted"
    fast = Pod.make(tmp_path, vault, url, "backup", intent_id, volume.path)
    assert end(fast.start())[0] == 0
    point = await run(vault, intent_id, volume.path)
    assert await give_back(vault, point, tmp_path / "back") == volume.sha256()


async def test_maintain_and_verify_run_as_movers(tmp_path: Path, vault: Vault, url: str, volume: Volume) -> None:
    await take(vault, volume.path)
    where = vault.namespace_id
    for task in ("maintain", "verify"):
        pod = Pod.make(tmp_path, vault, url, task, where, volume.path, sample=1.0)
        code, lines, log = end(pod.start())
        assert code == 0, log
        assert lines[-1]["stage"] == "done"


def test_a_long_message_is_cut_to_what_a_termination_message_may_hold() -> None:
    # given an outcome with a message far too long, of characters that take several bytes
    outcome = MoverOutcome(ok=False, reason="Damaged", message="ä€" * 5000, manifest_key="k" * 100)
    # when it is encoded
    raw = encode_outcome(outcome)
    # then it fits, is whole JSON, and says the rest in full
    assert len(raw) <= 1024
    assert len(raw) > 900
    found = json.loads(raw)
    assert found["reason"] == "Damaged"
    assert found["manifestKey"] == "k" * 100
    assert found["message"].startswith("ä€ä€")
