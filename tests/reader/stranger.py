"""A reader of Tidemark repositories by somebody who has only `docs/repository-format.md`.

It shares no code with `orchestrator/` (a test looks at its imports) and is as plain as it can be: one object at a
time, nothing cached but keys. It exists to prove that the page is enough and that what our own reader takes for granted
is really in the bytes. What must never happen here: a look into our code instead of a clearer page.

    python -m tests.reader.stranger REPOSITORY-FOLDER KEY-FILE                 lists the points
    python -m tests.reader.stranger REPOSITORY-FOLDER KEY-FILE POINT TARGET    restores one into a new file
"""

from __future__ import annotations

import json
import struct
import sys
import uuid
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MASTER_WRAP, NAMESPACE, PACK, MAP, MANIFEST, CANCELLED, RELOCATED = 1, 2, 3, 4, 5, 6, 11
LEAF_CHUNKS, FAN_OUT, SLOT = 1024, 256, 64


class Wrong(Exception):
    """The repository isn't what the page says: the message names the object."""


def derive(secret: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF of section 4."""
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(secret)


class Folder(Mapping[str, bytes]):
    """A directory repository: an object's name is its path."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getitem__(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        for path in sorted(self.root.rglob("*")):
            relative = path.relative_to(self.root)
            if path.is_file() and not any(part.startswith(".") for part in relative.parts):
                yield relative.as_posix()

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class Key:
    """A sealing key: the master key, the repository key, or one epoch's data key."""

    secret: bytes
    epoch: int
    repository: bytes

    def check(self) -> bytes:
        return derive(self.secret, b"tidemark/1/check" + self.repository + struct.pack("<I", self.epoch), 16)

    def open(self, kind: int, name: str, header: bytes, slot: int, sealed: bytes, role: int = 0) -> bytes:
        """Open one frame of the object with this name and header."""
        if len(header) != 64 or header[:8] != b"TIDEMARK":
            raise Wrong(f"{name}: no header")
        version, seen, algorithm, zero, epoch = struct.unpack_from("<BBBBI", header, 8)
        if (version, seen, algorithm, zero, epoch) != (1, kind, 1, 0, self.epoch):
            raise Wrong(f"{name}: version, kind, algorithm or epoch")
        if header[32:48] != self.repository:
            raise Wrong(f"{name}: another repository's")
        if header[48:64] != self.check():
            raise Wrong(f"{name}: another key")
        key = derive(self.secret, b"tidemark/1/object" + self.repository + bytes([kind]) + header[16:32])
        raw = name.encode()
        place = header + struct.pack("<H", len(raw)) + raw + bytes([role])
        try:
            return AESGCM(key).decrypt(slot.to_bytes(12, "little"), sealed, place)
        except InvalidTag:
            raise Wrong(f"{name}: the frame at slot {slot} doesn't open") from None


def unpack(name: str, codec: int, data: bytes) -> bytes:
    """Undo a codec."""
    if codec == 0:
        return data
    if codec != 1:
        raise Wrong(f"{name}: codec {codec}")
    try:
        return zstd.decompress(data)
    except zstd.ZstdError:
        raise Wrong(f"{name}: not a zstd frame") from None


def open_document(key: Key, kind: int, name: str, data: bytes) -> tuple[Any, bytes]:
    """Return (JSON, tail) of section 5."""
    frame = key.open(kind, name, data[:64], 1, data[64:])
    codec, length = struct.unpack_from("<BI", frame)
    body = unpack(name, codec, frame[5:])
    (split,) = struct.unpack_from("<I", body)
    if len(body) != length or 4 + split > length:
        raise Wrong(f"{name}: lengths")
    return json.loads(body[4 : 4 + split]), body[4 + split :]


@dataclass(frozen=True)
class Entry:
    """Where a chunk is and what it must be."""

    id: bytes
    pack: bytes
    slot: int
    length: int
    codec: int


def read_entry(raw: bytes, at: int, packs: list[bytes]) -> Entry | None:
    """Read 40 bytes; None is a hole."""
    chunk_id, word = struct.unpack_from("<32sQ", raw, at)
    length = word >> 40 & 0x3FFFFF
    if not length:
        return None
    return Entry(chunk_id, packs[word & 0xFFFF], word >> 16 & 0xFFFFFF, length, word >> 62)


def read_leaf(raw: bytes) -> dict[int, Entry]:
    """Read a leaf page: chunk number inside it -> entry."""
    one, zero, entries, packs, rest = struct.unpack_from("<BBHHH", raw)
    if (one, zero, rest) != (1, 0, 0):
        raise Wrong("not a leaf")
    table = [raw[8 + 34 * i : 8 + 34 * i + 32] for i in range(packs)]
    at = 8 + 34 * packs
    bits = raw[at : at + 128]
    present = [i for i in range(LEAF_CHUNKS) if bits[i // 8] >> i % 8 & 1]
    if len(present) != entries or len(raw) != at + 128 + 40 * entries:
        raise Wrong("a leaf's counts")
    found = {}
    for position, number in enumerate(present):
        entry = read_entry(raw, at + 128 + 40 * position, table)
        if entry is None:
            raise Wrong("a hole in a leaf")
        found[number] = entry
    return found


@dataclass(frozen=True)
class Page:
    """A reference to a page."""

    object: bytes
    slot: int
    length: int
    digest: bytes


def read_inner(raw: bytes, level: int) -> list[tuple[Page | None, list[tuple[int, Entry | None]]]]:
    """Read an inner page: for each child its page and its overlay."""
    two, seen, children, objects, packs, overlays = struct.unpack_from("<BBHHHI", raw)
    if (two, seen) != (2, level) or (overlays and level != 1):
        raise Wrong(f"not an inner page of level {level}")
    at = 12
    object_table = [raw[at + 32 * i : at + 32 * i + 32] for i in range(objects)]
    at += 32 * objects
    pack_table = [raw[at + 32 * i : at + 32 * i + 32] for i in range(packs)]
    at += 32 * packs
    next_overlay = at + 44 * children
    if len(raw) != next_overlay + 42 * overlays:
        raise Wrong("an inner page's counts")
    found = []
    for child in range(children):
        number, count, slot, length, digest = struct.unpack_from("<HHII32s", raw, at + 44 * child)
        overlay = []
        for _ in range(count):
            (chunk,) = struct.unpack_from("<H", raw, next_overlay)
            overlay.append((chunk, read_entry(raw, next_overlay + 2, pack_table)))
            next_overlay += 42
        page = None if number == 0xFFFF else Page(object_table[number], slot, length, digest)
        found.append((page, overlay))
    return found


class Namespace:
    """The points of one namespace, and the keys that open them."""

    def __init__(self, objects: Mapping[str, bytes], ns: str, document: Any, epochs: dict[int, Key]) -> None:
        self.objects, self.ns, self.epochs = objects, ns, epochs
        self.cluster, self.uid, self.name = document["clusterId"], document["uid"], document["name"]
        self.chunk_id_key = b64decode(document["chunkIdKey"])

    def points(self) -> dict[str, Any]:
        """Return manifest name -> manifest, of every point that isn't cancelled."""
        found = {}
        for name in sorted(self.objects):
            if name.startswith(f"n/{self.ns}/points/"):
                data = self.objects[name]
                if data[9:10] != bytes([CANCELLED]):
                    found[name] = self.open(MANIFEST, name, data)[0]
        return found

    def open(self, kind: int, name: str, data: bytes) -> tuple[Any, bytes]:
        """Open a document under the epoch that its header names."""
        return open_document(self._key(name, data[:64]), kind, name, data)

    def _key(self, name: str, header: bytes) -> Key:
        if len(header) != 64:
            raise Wrong(f"{name}: no header")
        epoch = int.from_bytes(header[12:16], "little")
        if epoch not in self.epochs:
            raise Wrong(f"{name}: epoch {epoch}")
        return self.epochs[epoch]

    def _frame(self, kind: int, ref: bytes, slot: int, length: int) -> tuple[str, bytes, bytes]:
        """Return an object's name, one sealed frame of it, and that opened."""
        folder = {PACK: "packs", MAP: "maps"}[kind]
        name = f"n/{self.ns}/{folder}/{uuid.UUID(bytes=ref[:16])}/{ref[16:].hex()}"
        if name not in self.objects:
            raise KeyError(name)
        data = self.objects[name]
        if data[16:32] != ref[16:]:
            raise Wrong(f"{name}: its header has another id")
        sealed = data[slot * SLOT : slot * SLOT + length]
        return name, sealed, self._key(name, data[:64]).open(kind, name, data[:64], slot, sealed)

    def page(self, page: Page) -> bytes:
        """Return a page, checked against its reference."""
        name, sealed, plain = self._frame(MAP, page.object, page.slot, page.length)
        if blake3(sealed).digest() != page.digest:
            raise Wrong(f"{name}: digest of the page at slot {page.slot}")
        return plain

    def chunk(self, entry: Entry, chunk_size: int) -> bytes:
        """Return a chunk's plaintext, checked against its id; looks where its pack was relocated to."""
        try:
            name, _, packed = self._frame(PACK, entry.pack, entry.slot, entry.length)
        except KeyError:
            target, slot = self._moved(entry)
            name, _, packed = self._frame(PACK, target, slot, entry.length)
        plain = unpack(name, entry.codec, packed)
        if len(plain) > chunk_size or blake3(plain, key=self.chunk_id_key).digest() != entry.id:
            raise Wrong(f"{name}: the chunk at slot {entry.slot} is another one")
        return plain

    def footer(self, name: str) -> list[tuple[int, Entry]]:
        """Return (chunk index, entry) of each frame of a pack, as its footer says; nothing is restored from it."""
        _, _, _, intent, random = name.split("/")
        data, ref = self.objects[name], uuid.UUID(intent).bytes + bytes.fromhex(random)
        slot, length, magic = struct.unpack_from("<II8s", data, len(data) - 16)
        if magic != b"TMFOOTER" or slot * SLOT + length + 16 != len(data):
            raise Wrong(f"{name}: trailer")
        key = self._key(name, data[:64])
        raw = key.open(PACK, name, data[:64], slot, data[slot * SLOT : slot * SLOT + length], role=1)
        found = []
        for index, chunk_id, at, word in struct.iter_unpack("<Q32sII", raw):
            if word >> 24:
                raise Wrong(f"{name}: footer")
            found.append((index, Entry(chunk_id, ref, at, word & 0x3FFFFF, word >> 22)))
        return found

    def _moved(self, entry: Entry) -> tuple[bytes, int]:
        """Follow the record of the highest generation."""
        prefix = f"n/{self.ns}/relocated/{uuid.UUID(bytes=entry.pack[:16])}/{entry.pack[16:].hex()}/"
        records = [name for name in self.objects if name.startswith(prefix)]
        if not records:
            raise Wrong(f"{prefix}: the pack is gone, and nothing says where to")
        name = max(records)
        document, tail = self.open(RELOCATED, name, self.objects[name])
        if document["pack"] != entry.pack.hex():
            raise Wrong(f"{name}: of another pack")
        for old, number, new in struct.iter_unpack("<IHI", tail):
            if old == entry.slot:
                return bytes.fromhex(document["targets"][number]), new
        raise Wrong(f"{name}: slot {entry.slot} went nowhere")

    def chunks(self, root: Any) -> Iterator[tuple[int, Entry]]:
        """Yield (chunk index, entry) of all that isn't a hole, ascending."""
        page = root.get("page")
        if page is None:
            return
        top = Page(bytes.fromhex(page["object"]), page["slot"], page["length"], bytes.fromhex(page["digest"]))
        yield from self._below(top, root["levels"], 0)

    def _below(self, page: Page, level: int, number: int) -> Iterator[tuple[int, Entry]]:
        for child, (below, overlay) in enumerate(read_inner(self.page(page), level)):
            at = number * FAN_OUT + child
            if level > 1:
                if below is not None:
                    yield from self._below(below, level - 1, at)
                continue
            entries: dict[int, Entry | None] = {} if below is None else {**read_leaf(self.page(below))}
            entries.update(overlay)
            for chunk in sorted(entries):
                entry = entries[chunk]
                if entry is not None:
                    yield at * LEAF_CHUNKS + chunk, entry

    def data(self, name: str, digest: str | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of all that isn't a hole of a point, cut off at the volume's end."""
        data = self.objects[name]
        if digest is not None and blake3(data).hexdigest() != digest:
            raise Wrong(f"{name}: digest")
        root = self.open(MANIFEST, name, data)[0]["root"]
        size, chunk_size = root["volumeSize"], root["chunkSize"]
        for index, entry in self.chunks(root):
            if index * chunk_size >= size:
                raise Wrong(f"{name}: a chunk beyond the end")
            plain = self.chunk(entry, chunk_size)
            yield index * chunk_size, plain[: size - index * chunk_size]

    def volume(self, name: str, digest: str | None = None) -> bytes:
        """Return a whole point; for small volumes."""
        size = self.open(MANIFEST, name, self.objects[name])[0]["root"]["volumeSize"]
        whole = bytearray(size)
        for offset, data in self.data(name, digest):
            whole[offset : offset + len(data)] = data
        return bytes(whole)


def open_repository(objects: Mapping[str, bytes], master: bytes) -> list[Namespace]:
    """Open all namespaces of a repository with its master key."""
    mark = json.loads(objects["tidemark"])
    if mark["format"] != "tidemark-repository" or mark["version"] != 1:
        raise Wrong(f"tidemark: {mark['format']} {mark['version']}")
    repository = bytes.fromhex(mark["id"])
    wrap = max(name for name in objects if name.startswith("keys/"))
    document, _ = open_document(Key(master, 0, repository), MASTER_WRAP, wrap, objects[wrap])
    key = Key(b64decode(document["repositoryKey"]), 0, repository)
    documents: dict[str, dict[int, Any]] = {}
    for name in objects:
        if name.startswith("namespaces/"):
            _, ns, epoch = name.split("/")
            documents.setdefault(ns, {})[int(epoch)] = open_document(key, NAMESPACE, name, objects[name])[0]
    found = []
    for ns, epochs in sorted(documents.items()):
        newest = epochs[max(epochs)]
        who = newest["clusterId"].encode() + b"\0" + newest["uid"].encode()
        name_key = derive(key.secret, b"tidemark/1/namespace-id")
        if blake3(who, key=name_key).hexdigest()[:32] != ns:
            raise Wrong(f"namespaces/{ns}: of another namespace")
        if len({document["chunkIdKey"] for document in epochs.values()}) != 1:
            raise Wrong(f"namespaces/{ns}: epochs with different chunk-id keys")
        keys = {number: Key(b64decode(epochs[number]["dataKey"]), number, repository) for number in epochs}
        found.append(Namespace(objects, ns, newest, keys))
    return found


def main(arguments: list[str]) -> int:
    """List or restore; return the exit code."""
    key = Path(arguments[1]).read_bytes()
    master = key if len(key) == 32 else bytes.fromhex(key.decode().strip())
    for namespace in open_repository(Folder(Path(arguments[0])), master):
        for name, manifest in namespace.points().items():
            if len(arguments) == 2:
                print(manifest["record"]["pointId"], namespace.name, manifest["root"]["volumeSize"])
            elif manifest["record"]["pointId"].startswith(arguments[2]):
                with Path(arguments[3]).open("xb") as target:
                    target.truncate(manifest["root"]["volumeSize"])
                    for offset, data in namespace.data(name):
                        target.seek(offset)
                        target.write(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
