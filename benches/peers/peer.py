#!/usr/bin/env python3
"""Measure llama.cpp on one model file, and print what our `bench` example prints for ours.

    peer.py -m FILE -p 512 -n 128 -t THREADS -r 5 [--sequences N] [--depth D] [--flash on|off|auto] [--json]

The tests are those of llama-bench: `-p` random tokens in one prompt with micro-batches of 512; `-n` single-token
steps on a cache that holds `--depth` tokens. With `--sequences` every step carries one token of each sequence.
"""

import argparse
import json
import resource
import statistics
import sys
import time

import llama_cpp

import llama


def summary(rates: list[float]) -> dict:
    return {
        "median": round(statistics.median(rates), 3),
        "min": round(min(rates), 3),
        "max": round(max(rates), 3),
        "runs": [round(rate, 3) for rate in rates],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-p", "--prompt", type=int, default=512)
    parser.add_argument("-n", "--generate", type=int, default=128)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--flash", choices=sorted(llama.FLASH), default="auto")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    begin = time.perf_counter()
    with llama.Model(args.model) as model:
        load_ms = 1e3 * (time.perf_counter() - begin)
        report = {
            "engine": f"llama-cpp-python {llama_cpp.__version__}",
            "system": llama_cpp.llama_print_system_info().decode().strip(" |"),
            "model": model.description(),
            "flash": args.flash,
            "threads": args.threads,
            "load_ms": round(load_ms, 1),
        }
        if args.prompt:
            report["prefill_tokens_per_s"] = summary(
                llama.measure_prefill(model, args.prompt, args.depth, args.repetitions, args.threads, args.flash))
        if args.generate:
            report["decode_tokens_per_s"] = summary(
                llama.measure_decode(model, args.generate, args.depth, args.sequences, args.repetitions, args.threads, args.flash))
    report["memory"] = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if args.json:
        print(json.dumps(report))
    else:
        print(report["model"], "flash", args.flash)
        for test in ("prefill", "decode"):
            rates = report.get(f"{test}_tokens_per_s")
            if rates:
                print(f"{test:8} {rates['median']:9.2f} tokens/s  ({rates['min']:.2f} to {rates['max']:.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
