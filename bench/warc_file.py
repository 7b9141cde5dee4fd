"""The input of row b: one web archive of the members of real ones, again and again; of generated pages without them."""

from __future__ import annotations

import hashlib
import random
import zlib
from pathlib import Path

REAL = ("cc_dolma_warc/sample-000*.warc.gz", "warc_resiliparse/warcfile.warc.gz", "cc_whirlwind/whirlwind.warc.gz")


def members(real: Path) -> list[bytes]:
    """Gzip members of real WARCs; of generated pages where there are none."""
    files = sorted(file for pattern in REAL for file in real.glob(pattern))
    found = []
    for file in files:
        data = file.read_bytes()
        while data:
            inflater = zlib.decompressobj(31)
            inflater.decompress(data)
            found.append(data[: len(data) - len(inflater.unused_data)])
            data = inflater.unused_data
    return found or [_generated(seed) for seed in range(300)]


def _generated(seed: int) -> bytes:
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(2000)]
    text = " ".join(rng.choices(words, k=rng.randint(500, 15_000)))
    block = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html><body><p>{text}</p></body></html>".encode()
    digest = hashlib.sha1(block).hexdigest()
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:{seed}>\r\n"
        f"WARC-Target-URI: http://example.com/{seed}\r\nWARC-Block-Digest: sha1:{digest}\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(block)}\r\n\r\n"
    ).encode()
    packer = zlib.compressobj(wbits=31)
    return packer.compress(head + block + b"\r\n\r\n") + packer.flush()


def build(folder: Path, megabytes: int, real: Path) -> tuple[Path, int, int]:
    """Write the file; gives it, its decompressed bytes and its records."""
    sized = [(member, len(zlib.decompress(member, 31))) for member in members(real)]
    path, size, count = folder / "bench.warc.gz", 0, 0
    with path.open("wb") as out:
        while size < megabytes * 10**6:
            for member, length in sized:
                out.write(member)
                size, count = size + length, count + 1
    return path, size, count
