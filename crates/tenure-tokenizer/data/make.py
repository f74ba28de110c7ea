#!/usr/bin/env python3
"""Makes clip-merges.z and t5-spiece.z from ordinary packages; README.md says which.

    pip install --no-deps open_clip_torch
    cargo info diffusion-rs-sys@0.1.20          # leaves the .crate in Cargo's cache
    python3 crates/tenure-tokenizer/data/make.py SITE_PACKAGES DIFFUSION_RS_SYS.crate

SITE_PACKAGES is the folder that open_clip lies in. Nothing beyond Python is needed.
"""

import base64
import gzip
import hashlib
import json
import os
import re
import struct
import sys
import tarfile
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))

# 49,408 tokens less 2 * 256 symbols and the two special tokens.
CLIP_MERGES = 49408 - 512 - 2
T5_PIECES = 32000


def clip(site_packages: str) -> bytes:
    """The merges that CLIP uses of the 262,145 in the list, one a line."""
    with gzip.open(os.path.join(site_packages, "open_clip", "bpe_simple_vocab_16e6.txt.gz"), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    merges = lines[1 : 1 + CLIP_MERGES]
    assert all(line.count(" ") == 1 for line in merges)
    return ("\n".join(merges) + "\n").encode()


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def t5(crate: str) -> bytes:
    """SentencePiece's ModelProto with the pieces, their scores and types, and the table of replaced characters."""
    with tarfile.open(crate) as archive:
        name = next(name for name in archive.getnames() if name.endswith("/tokenizers/vocab/t5.hpp"))
        source = archive.extractfile(name).read().decode()
    tokenizer = json.loads(bytes(int(byte, 16) for byte in re.findall(r"0x([0-9a-f]{2})", source)))
    pieces = tokenizer["model"]["vocab"]
    assert len(pieces) == T5_PIECES + 100 and pieces[T5_PIECES][0] == "<extra_id_99>"
    assert [text for text, _ in pieces[:3]] == ["<pad>", "</s>", "<unk>"] and tokenizer["model"]["unk_id"] == 2
    charsmap = next(step for step in tokenizer["normalizer"]["normalizers"] if step["type"] == "Precompiled")
    out = b""
    for id, (text, score) in enumerate(pieces[:T5_PIECES]):
        bits = struct.pack("<f", score)
        assert struct.unpack("<f", bits)[0] == score
        # Types: 2 is the unknown token, 3 a control token.
        kind = {0: 3, 1: 3, 2: 2}.get(id)
        out += field(1, field(1, text.encode()) + b"\x15" + bits + (b"" if kind is None else bytes([0x18, kind])))
    # The numbers of the unknown, beginning, end and padding tokens, so that other readers of such files find them.
    special = b"".join(varint(key << 3) + varint(id % 2**64) for key, id in [(40, 2), (41, -1), (42, 1), (43, 0)])
    return out + field(2, special) + field(3, field(2, base64.b64decode(charsmap["precompiled_charsmap"])))


def write(name: str, data: bytes) -> None:
    packed = zlib.compress(data, 9)
    with open(os.path.join(HERE, name), "wb") as file:
        file.write(packed)
    print(f"{name}: {len(packed)} bytes for {len(data)}, SHA-256 of these {hashlib.sha256(data).hexdigest()}")


write("clip-merges.z", clip(sys.argv[1]))
write("t5-spiece.z", t5(sys.argv[2]))
