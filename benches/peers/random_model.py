#!/usr/bin/env python3
"""Write models with the shape of published ones and random weights, for speed comparisons without a download.

    random_model.py CACHE_DIR [--shapes qwen3-0.6b,qwen2-0.5b] [--types Q4_K_M]

Speed does not depend on what the weights say, only on their shapes and formats. The vocabulary has the real size:
256 bytes, byte-pair merges over them and three control tokens. The weights are drawn from a fixed seed.
"""

import argparse
import os
import sys
import time

import gguf
import llama_cpp
import numpy as np

from requantise import FORMATS, quantise

SHAPES = {
    "qwen3-0.6b": dict(
        arch="qwen3", layers=28, width=1024, ffn=3072, heads=16, kv_heads=8, head_dim=128,
        vocab=151936, context=40960, rope_base=1e6, eps=1e-6, qk_norm=True, qkv_bias=False,
    ),
    "qwen2-0.5b": dict(
        arch="qwen2", layers=24, width=896, ffn=4864, heads=14, kv_heads=2, head_dim=64,
        vocab=151936, context=32768, rope_base=1e6, eps=1e-6, qk_norm=False, qkv_bias=True,
    ),
}


def byte_symbols() -> list[str]:
    """The printable stand-ins of the 256 bytes in a byte-level BPE vocabulary (the GPT-2 table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols, spare = {}, 256
    for byte in range(256):
        if byte in printable:
            symbols[byte] = chr(byte)
        else:
            symbols[byte] = chr(spare)
            spare += 1
    return [symbols[byte] for byte in range(256)]


def vocabulary(size: int) -> tuple[list[str], list[int], list[str]]:
    """`size` tokens (bytes, merges, control tokens), their types, and the merges that make them."""
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    symbols = byte_symbols()
    tokens, seen, merges = list(symbols), set(symbols), []
    room = size - len(control)
    # Every token is one of the earlier ones with a byte behind it: all pairs first, then triples.
    for left in range(size):
        for right in symbols:
            joined = tokens[left] + right
            if len(tokens) < room and joined not in seen:
                seen.add(joined)
                merges.append(f"{tokens[left]} {right}")
                tokens.append(joined)
        if len(tokens) == room:
            break
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * len(control)
    return tokens + control, kinds, merges


def write(path: str, shape: dict, seed: int) -> None:
    """Write the F16 file: matrices from N(0, 1/fan_in), norms near one."""
    arch, width, head_dim = shape["arch"], shape["width"], shape["head_dim"]
    q_rows, kv_rows = shape["heads"] * head_dim, shape["kv_heads"] * head_dim
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, arch, use_temp_file=True)
    writer.add_name(f"random {arch} shape")
    writer.add_block_count(shape["layers"])
    writer.add_context_length(shape["context"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(shape["ffn"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    if q_rows != width:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(shape["eps"])
    writer.add_rope_freq_base(shape["rope_base"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    tokens, kinds, merges = vocabulary(shape["vocab"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens) - 3)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)

    def matrix(name: str, rows: int, columns: int) -> None:
        data = rng.standard_normal((rows, columns), dtype=np.float32)
        data *= np.float32(columns**-0.5)
        writer.add_tensor(name, data.astype(np.float16))

    def vector(name: str, count: int, mean: float) -> None:
        data = mean + 0.05 * rng.standard_normal(count, dtype=np.float32)
        writer.add_tensor(name, data.astype(np.float32))

    matrix("token_embd.weight", shape["vocab"], width)
    vector("output_norm.weight", width, 1.0)
    for layer in range(shape["layers"]):
        block = f"blk.{layer}"
        vector(f"{block}.attn_norm.weight", width, 1.0)
        vector(f"{block}.ffn_norm.weight", width, 1.0)
        matrix(f"{block}.attn_q.weight", q_rows, width)
        matrix(f"{block}.attn_k.weight", kv_rows, width)
        matrix(f"{block}.attn_v.weight", kv_rows, width)
        matrix(f"{block}.attn_output.weight", width, q_rows)
        if shape["qkv_bias"]:
            vector(f"{block}.attn_q.bias", q_rows, 0.0)
            vector(f"{block}.attn_k.bias", kv_rows, 0.0)
            vector(f"{block}.attn_v.bias", kv_rows, 0.0)
        if shape["qk_norm"]:
            vector(f"{block}.attn_q_norm.weight", head_dim, 1.0)
            vector(f"{block}.attn_k_norm.weight", head_dim, 1.0)
        matrix(f"{block}.ffn_gate.weight", shape["ffn"], width)
        matrix(f"{block}.ffn_up.weight", shape["ffn"], width)
        matrix(f"{block}.ffn_down.weight", width, shape["ffn"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache_dir")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--types", default="Q4_K_M", help="formats to make from the F16 file, comma-separated")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    os.makedirs(args.cache_dir, exist_ok=True)
    llama_cpp.llama_backend_init()
    for shape in args.shapes.split(","):
        if shape not in SHAPES:
            parser.error(f"unknown shape {shape}; known: {sorted(SHAPES)}")
        source = os.path.join(args.cache_dir, f"random-{shape}.F16.gguf")
        if not os.path.exists(source):
            begin = time.monotonic()
            partial = f"{source}.{os.getpid()}.part"
            write(partial, SHAPES[shape], args.seed)
            os.replace(partial, source)
            print(f"{source}: {os.path.getsize(source)} bytes, {time.monotonic() - begin:.1f} s", flush=True)
        for name in args.types.split(","):
            if name not in FORMATS:
                parser.error(f"unknown format {name}; known: {sorted(FORMATS)}")
            target = os.path.join(args.cache_dir, f"random-{shape}.{name}.gguf")
            if not os.path.exists(target):
                begin = time.monotonic()
                quantise(source, target, name, args.threads)
                print(f"{target}: {os.path.getsize(target)} bytes, {time.monotonic() - begin:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
