"""Seal and open frames: one AES-256-GCM key per object, the frame's place as nonce, the object's place as data.

Nonce reuse is impossible by construction: an object's key comes from its own 128 random bits, a frame's nonce is the
slot where it starts, and no two frames start at one slot. What must never happen here: a key in a message or a repr.
"""

from __future__ import annotations

import os
import struct

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hashes import SHA256, Hash

from orchestrator.repository.errors import Damaged, UnsupportedFormat, WrongKey
from orchestrator.repository.layout import FORMAT_VERSION, SLOT_UNIT, Kind

try:
    # The same objects as under their public names, which a test holds: those bring every cipher and mode along, and a
    # mover's start pays for that.
    from cryptography.hazmat.bindings._rust import openssl

    AESGCM = openssl.aead.AESGCM
    HKDF = openssl.kdf.HKDF
except (ImportError, AttributeError):  # a cryptography that keeps them elsewhere
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MAGIC = b"TIDEMARK"
ALGORITHM = 1
"""AES-256-GCM, 96-bit nonce, 128-bit tag; HKDF-SHA256; BLAKE3."""
HEADER = struct.Struct("<8sBBBBI16s16s16s")
TAG = 16
FRAME, FOOTER = 0, 1
Bytes = bytes | bytearray | memoryview

assert HEADER.size == SLOT_UNIT


def digest(data: Bytes) -> str:
    """Return the BLAKE3 digest of sealed bytes, 64 hex digits: what references carry."""
    return blake3(data).hexdigest()


def sha256(data: bytes) -> bytes:
    """Return the SHA-256 digest (by this room's library: `hashlib` would load another OpenSSL beside it)."""
    hashing = Hash(SHA256())
    hashing.update(data)
    return hashing.finalize()


def derive(secret: bytes, info: bytes, length: int = 32) -> bytes:
    """Derive bytes from a key by HKDF-SHA256 without salt."""
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(secret)


class SealingKey(msgspec.Struct, frozen=True):
    """A key that seals objects: the master key, the repository key, or one epoch of a namespace's data key."""

    secret: bytes
    epoch: int
    repository: bytes
    """The repository's 16-byte id."""
    check: bytes = b""
    """Made from the others; whatever is given is not taken."""

    def __post_init__(self) -> None:
        info = b"tidemark/1/check" + self.repository + struct.pack("<I", self.epoch)
        msgspec.structs.force_setattr(self, "check", derive(self.secret, info, 16))

    def __repr__(self) -> str:
        return f"SealingKey(epoch={self.epoch}, repository={self.repository!r})"


class Header(msgspec.Struct, frozen=True):
    """The first 64 bytes of every sealed object."""

    kind: int
    algorithm: int
    epoch: int
    object_id: bytes
    repository: bytes
    check: bytes

    def to_bytes(self) -> bytes:
        """Write 64 bytes."""
        return HEADER.pack(
            MAGIC,
            FORMAT_VERSION,
            self.kind,
            self.algorithm,
            0,
            self.epoch,
            self.object_id,
            self.repository,
            self.check,
        )

    @classmethod
    def parse(cls, key: str, data: Bytes) -> Header:
        """Read 64 bytes; Damaged when they are no header, UnsupportedFormat when they are of a later version."""
        if len(data) < HEADER.size:
            raise Damaged(key, f"{len(data)} bytes are too few for a header")
        magic, version, kind, algorithm, zero, epoch, object_id, repository, check = HEADER.unpack_from(data)
        if magic != MAGIC:
            raise Damaged(key, "it doesn't start as a Tidemark object")
        if version != FORMAT_VERSION:
            raise UnsupportedFormat(key, f"format version {version}")
        if algorithm != ALGORITHM:
            raise UnsupportedFormat(key, f"algorithm {algorithm}")
        if zero:
            raise Damaged(key, "reserved bytes of the header are not zero")
        return cls(kind, algorithm, epoch, object_id, repository, check)


class ObjectCipher:
    """Seals or opens the frames of one object. Thread safe; holds the object's key."""

    __slots__ = ("_aes", "_footer_data", "_frame_data", "header", "name")

    def __init__(self, key: SealingKey, header: Header, name: str) -> None:
        info = b"tidemark/1/object" + header.repository + bytes((header.kind,)) + header.object_id
        raw = header.to_bytes()
        place = name.encode()
        data = raw + struct.pack("<H", len(place)) + place
        self._aes = AESGCM(derive(key.secret, info))
        self._frame_data = data + bytes((FRAME,))
        self._footer_data = data + bytes((FOOTER,))
        self.header = raw
        self.name = name

    @classmethod
    def new(cls, key: SealingKey, kind: Kind, name: str, object_id: bytes | None = None) -> ObjectCipher:
        """Start a new object; its id is 128 new random bits unless its name already holds them."""
        return cls.known(key, kind, name, object_id or os.urandom(16))

    @classmethod
    def known(cls, key: SealingKey, kind: Kind, name: str, object_id: bytes) -> ObjectCipher:
        """Open an object whose id is known from its name, without reading its header."""
        return cls(key, Header(int(kind), ALGORITHM, key.epoch, object_id, key.repository, key.check), name)

    @classmethod
    def of(cls, key: SealingKey, kind: Kind, name: str, data: Bytes) -> ObjectCipher:
        """Open an object that exists, from its first 64 bytes.

        Raises Damaged (another kind, another repository's), WrongKey, UnsupportedFormat.
        """
        header = Header.parse(name, data)
        if header.kind != kind:
            raise Damaged(name, f"it is of kind {header.kind}, expected {int(kind)}")
        if header.repository != key.repository:
            raise Damaged(name, "it belongs to another repository")
        if header.epoch != key.epoch or header.check != key.check:
            raise WrongKey(name)
        return cls(key, header, name)

    def seal_into(self, slot: int, plain: Bytes, target: memoryview, *, footer: bool = False) -> int:
        """Seal `plain` into `target` (its length + 16 bytes exactly); return the sealed length."""
        data = self._footer_data if footer else self._frame_data
        self._aes.encrypt_into(slot.to_bytes(12, "little"), plain, data, target)
        return len(plain) + TAG

    def seal(self, slot: int, plain: Bytes, *, footer: bool = False) -> bytes:
        """Return the sealed frame that starts at `slot`."""
        return self._aes.encrypt(slot.to_bytes(12, "little"), plain, self._footer_data if footer else self._frame_data)

    def open(self, slot: int, sealed: Bytes, *, footer: bool = False) -> bytes:
        """Return what was sealed at `slot`; Damaged when it isn't exactly that."""
        try:
            return self._aes.decrypt(
                slot.to_bytes(12, "little"), sealed, self._footer_data if footer else self._frame_data
            )
        except (InvalidTag, ValueError) as error:
            raise Damaged(self.name, f"the frame at slot {slot} doesn't open") from error

    def open_into(self, slot: int, sealed: Bytes, target: memoryview) -> memoryview:
        """Open a frame into `target` (as long as the plaintext at least); return that part. Damaged.

        After Damaged the target holds bytes that nobody vouches for.
        """
        part = target[: max(len(sealed) - TAG, 0)]
        try:
            self._aes.decrypt_into(slot.to_bytes(12, "little"), sealed, self._frame_data, part)
        except (InvalidTag, ValueError) as error:
            raise Damaged(self.name, f"the frame at slot {slot} doesn't open") from error
        return part
