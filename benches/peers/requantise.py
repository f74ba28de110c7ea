#!/usr/bin/env python3
"""Write one model file in several weight formats, with llama.cpp's own quantiser.

    requantise.py SOURCE.gguf CACHE_DIR [--types Q4_0,IQ4_NL,...]

An already quantised source is expanded to F32 first and every other format is made from that file, so that all of
them hold the same weights up to their own rounding. Files that exist are left alone.
"""

import argparse
import ctypes
import os
import sys
import time

import llama_cpp

FORMATS = {
    "F32": llama_cpp.LLAMA_FTYPE_ALL_F32,
    "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "BF16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1,
    "Q5_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_0,
    "Q5_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_1,
    "Q2_K": llama_cpp.LLAMA_FTYPE_MOSTLY_Q2_K,
    "Q3_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q3_K_M,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q5_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "Q6_K": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
    "IQ4_NL": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ4_NL,
    "IQ4_XS": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ4_XS,
}
DEFAULT = "F32,Q4_0,IQ4_NL,Q8_0,Q4_K_M,F16,Q5_0,Q5_1,Q6_K,BF16,Q2_K,Q3_K_M,Q5_K_M,IQ4_XS"


def quantise(source: str, target: str, name: str, threads: int = 1) -> None:
    """Quantise `source` into `target`; the target appears under its name only when it is complete."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FORMATS[name]
    params.nthread = threads
    params.allow_requantize = True
    partial = f"{target}.{os.getpid()}.part"
    try:
        status = llama_cpp.llama_model_quantize(source.encode(), partial.encode(), ctypes.byref(params))
        if status != 0:
            raise RuntimeError(f"llama_model_quantize returned {status} for {name}")
        os.replace(partial, target)
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("cache_dir")
    parser.add_argument("--stem", help="base name of the files written (default: from the source's name)")
    parser.add_argument("--types", default=DEFAULT, help=f"comma-separated list (default {DEFAULT})")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    wanted = args.types.split(",")
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown:
        parser.error(f"unknown formats {unknown}; known: {sorted(FORMATS)}")
    os.makedirs(args.cache_dir, exist_ok=True)
    stem = args.stem
    if stem is None:
        stem = os.path.basename(args.source).removesuffix(".gguf")
        head, _, tail = stem.rpartition(".")
        stem = head if tail.upper() in FORMATS else stem

    llama_cpp.llama_backend_init()
    full = os.path.join(args.cache_dir, f"{stem}.F32.gguf")
    if not os.path.exists(full):
        quantise(args.source, full, "F32", args.threads)
    for name in wanted:
        target = os.path.join(args.cache_dir, f"{stem}.{name}.gguf")
        if os.path.exists(target):
            print(f"{target}: exists")
            continue
        begin = time.monotonic()
        quantise(full, target, name, args.threads)
        print(f"{target}: {os.path.getsize(target)} bytes, {time.monotonic() - begin:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
