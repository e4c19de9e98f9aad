"""Seals and keys: nothing opens but what was sealed there, with that key; nothing shows a key."""

from __future__ import annotations

import base64
import copy
import hashlib
import pickle
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.repository import crypto
from orchestrator.repository.compression import RAW, ZSTD, compress, decompress
from orchestrator.repository.crypto import HEADER, ObjectCipher, SealingKey
from orchestrator.repository.errors import Damaged, KeyMalformed, UnsupportedFormat, WrongKey
from orchestrator.repository.keys import MasterKey, NamespaceIdentity, NamespaceKeys, namespace_id
from orchestrator.repository.layout import Kind
from orchestrator.repository.record import open_body, seal_body
from orchestrator.repository.vault import Vault
from tests.repository.faults import Shelf

pytestmark = pytest.mark.quick
REPOSITORY = bytes(range(16))
KEY = SealingKey(bytes(32), 1, REPOSITORY)


def _keys(**changes: object) -> NamespaceKeys:
    values: dict[str, object] = {
        "repository_id": REPOSITORY.hex(),
        "namespace_id": "ab" * 16,
        "namespace": NamespaceIdentity("c", "u", "shop"),
        "current_epoch": 2,
        "data_keys": {1: b"\x01" * 32, 2: b"\x02" * 32},
        "chunk_id_key": b"\x03" * 32,
    }
    return NamespaceKeys(**{**values, **changes})  # type: ignore[arg-type]


def test_a_frame_opens_only_at_its_slot_in_its_object_under_its_name_and_key() -> None:
    cipher = ObjectCipher.new(KEY, Kind.PACK, "n/x/packs/a/b")
    sealed = cipher.seal(7, b"content")
    head = cipher.header
    assert ObjectCipher.of(KEY, Kind.PACK, "n/x/packs/a/b", head).open(7, sealed) == b"content"
    other = SealingKey(bytes(31) + b"\1", 1, REPOSITORY)
    wrong = [
        (ObjectCipher.of(KEY, Kind.PACK, "n/x/packs/a/b", head), 8, False),
        (ObjectCipher.of(KEY, Kind.PACK, "n/x/packs/a/b", head), 7, True),
        (ObjectCipher.of(KEY, Kind.PACK, "n/x/packs/a/c", head), 7, False),
        (ObjectCipher.known(other, Kind.PACK, "n/x/packs/a/b", head[16:32]), 7, False),
        (ObjectCipher.known(KEY, Kind.MAP, "n/x/packs/a/b", head[16:32]), 7, False),
        (ObjectCipher.known(KEY, Kind.PACK, "n/x/packs/a/b", bytes(16)), 7, False),
    ]
    for opener, slot, footer in wrong:
        with pytest.raises(Damaged):
            opener.open(slot, sealed, footer=footer)


def test_ciphers_taken_by_a_short_way_are_those_of_the_public_names() -> None:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    assert (crypto.AESGCM, crypto.HKDF) == (AESGCM, HKDF)
    assert crypto.sha256(b"tidemark") == hashlib.sha256(b"tidemark").digest()


def test_no_key_is_in_a_repr_and_none_can_be_changed() -> None:
    secret = bytes(range(64, 96))
    keys = _keys(data_keys={2: secret}, chunk_id_key=secret)
    vault = Vault(Shelf(), keys)
    for holder in (SealingKey(secret, 2, REPOSITORY), keys, vault):
        for form in (repr(secret)[2:-1], secret.hex(), "@AB", repr(keys.current.check)[2:-1]):
            assert form not in repr(holder) + repr([holder])
    with pytest.raises(AttributeError):
        keys.current_epoch = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        keys.current.secret = bytes(32)  # type: ignore[misc]
    assert vault.names.prefix == f"n/{keys.namespace_id}/"


def test_no_object_key_serves_two_objects_and_no_nonce_two_frames() -> None:
    ids = {ObjectCipher.new(KEY, Kind.PACK, "same name").header[16:32] for _ in range(200)}
    assert len(ids) == 200
    one, two = ObjectCipher.new(KEY, Kind.PACK, "n"), ObjectCipher.new(KEY, Kind.PACK, "n")
    plain = bytes(64)
    streams = {one.seal(1, plain)[:64], one.seal(2, plain)[:64], two.seal(1, plain)[:64], two.seal(2, plain)[:64]}
    assert len(streams) == 4


@given(st.integers(0, 8 * 200 - 1))
def test_any_flipped_bit_of_a_document_is_found(bit: int) -> None:
    cipher = ObjectCipher.new(KEY, Kind.INTENT, "some/name")
    data = bytearray(seal_body(cipher, secrets.token_bytes(200)))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises((Damaged, WrongKey, UnsupportedFormat)):
        open_body(ObjectCipher.of(KEY, Kind.INTENT, "some/name", data), data)


@given(st.integers(0, 300))
def test_a_truncated_document_is_found(keep: int) -> None:
    cipher = ObjectCipher.new(KEY, Kind.INTENT, "some/name")
    data = seal_body(cipher, secrets.token_bytes(250))[:keep]
    with pytest.raises(Damaged):
        open_body(ObjectCipher.of(KEY, Kind.INTENT, "some/name", data), data)


def test_a_document_keeps_its_tail() -> None:
    cipher = ObjectCipher.new(KEY, Kind.PLAN, "p")
    for tail in (b"", b"x", bytes(100_000), secrets.token_bytes(100_000)):
        assert open_body(cipher, seal_body(cipher, b"{}", tail)) == (b"{}", tail)


def test_a_header_is_one_slot_long() -> None:
    assert HEADER.size == 64


@given(st.binary(max_size=5000), st.integers(1, 200))
def test_compression_gives_back_what_went_in_and_never_more_than_the_limit(data: bytes, times: int) -> None:
    body = data * times
    codec, packed = compress(body)
    assert bytes(decompress(codec, packed, len(body))) == body
    assert len(packed) <= len(body)
    if body:
        with pytest.raises(ValueError, match="bytes"):
            decompress(codec, packed, len(body) - 1)


def test_malformed_compression_is_refused() -> None:
    _, packed = compress(bytes(10_000))
    for codec, data in ((ZSTD, b"nonsense"), (ZSTD, packed[:-1]), (ZSTD, bytes(packed) + b"x"), (2, b""), (3, b"")):
        with pytest.raises(ValueError, match=r"zstd|codec"):
            decompress(codec, data, 10_000)
    assert decompress(RAW, b"abc", 3) == b"abc"


def test_a_master_key_is_read_raw_hex_or_base64() -> None:
    raw = bytes(range(32))
    for text in (raw, raw.hex().encode(), raw.hex().upper().encode() + b"\n", base64.b64encode(raw) + b"\n"):
        assert MasterKey.from_bytes(text).to_hex() == raw.hex()
    assert MasterKey.from_bytes(base64.urlsafe_b64encode(b"\xff" * 32)).to_hex() == "ff" * 32
    for text in (b"", b"x" * 31, b"x" * 33, b"zz" * 32, base64.b64encode(b"x" * 31), raw.hex().encode()[:-1]):
        with pytest.raises(KeyMalformed) as caught:
            MasterKey.from_bytes(text)
        assert not text or text.decode("latin1") not in str(caught.value)


def test_a_key_file_that_is_missing_says_so() -> None:
    with pytest.raises(KeyMalformed, match="nowhere"):
        MasterKey.from_file("/nowhere/key")


def test_no_repr_shows_a_key() -> None:
    master = MasterKey(b"M" * 32)
    keys = _keys(data_keys={1: b"D" * 32, 2: b"E" * 32}, chunk_id_key=b"I" * 32)
    shown = f"{master!r} {master!s} {keys!r} {keys!s} {keys.current!r} {master.sealing_key(REPOSITORY)!r}"
    for secret in (b"M", b"D", b"E", b"I"):
        assert (secret * 32).decode() not in shown
        assert (secret * 32).hex() not in shown
    for call in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            call(master)


def test_namespace_keys_cross_into_a_mover_and_back() -> None:
    keys = _keys()
    again = NamespaceKeys.from_json(keys.to_json())
    assert again == keys
    assert again.current.secret == b"\x02" * 32
    assert again.chunk_id(b"x") == keys.chunk_id(b"x") != _keys(chunk_id_key=b"\x04" * 32).chunk_id(b"x")


@pytest.mark.parametrize("bad", [b"", b"{}", b"[1]", b"not json SECRETVALUE"])
def test_what_are_no_namespace_keys_is_refused_without_quoting(bad: bytes) -> None:
    with pytest.raises(KeyMalformed) as caught:
        NamespaceKeys.from_json(bad)
    assert "SECRETVALUE" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_namespace_made_again_has_another_id_and_a_renamed_cluster_view_the_same() -> None:
    one = namespace_id(bytes(32), NamespaceIdentity("c", "u1", "shop"))
    assert one != namespace_id(bytes(32), NamespaceIdentity("c", "u2", "shop"))
    assert one != namespace_id(bytes(32), NamespaceIdentity("d", "u1", "shop"))
    assert one != namespace_id(b"\1" * 32, NamespaceIdentity("c", "u1", "shop"))
    assert one == namespace_id(bytes(32), NamespaceIdentity("c", "u1", "shop"))


@pytest.mark.parametrize(
    "gone", ["sys.modules[rust.__name__] = None", "rust.openssl = types.SimpleNamespace()"], ids=["module", "names"]
)
def test_a_cryptography_that_keeps_its_parts_elsewhere_is_asked_by_their_public_names(gone: str) -> None:
    # given a library whose inner module is not there, or holds other names
    script = (
        "import sys, types\n"
        "from cryptography.hazmat.primitives.ciphers.aead import AESGCM\n"
        "from cryptography.hazmat.primitives.kdf.hkdf import HKDF\n"
        "from cryptography.hazmat.primitives import hashes\n"
        "from cryptography.hazmat.bindings import _rust as rust\n"
        f"{gone}\n"
        "from orchestrator.repository import crypto\n"
        "print(crypto.AESGCM is AESGCM, crypto.HKDF is HKDF, len(crypto.derive(bytes(32), b'x')))"
    )
    # when ours is imported, then it has the same from the public modules
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True True 32\n", "")
