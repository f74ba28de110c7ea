#!/usr/bin/env python3
"""What llama.cpp answers for a model file and prompts, as JSON, to check our numbers against.

    truth.py -m FILE [--prompt-file F ...] [-p TEXT ...] [--exact] [-n 48] [--perplexity TEXT -c 512] [-o OUT.json]

By default llama.cpp runs as it comes (f16 KV, flash attention auto, repacked weights, quantised activations).
`--exact` first expands the weights to F32 into a temporary file and takes f32 KV without flash attention: the nearest
thing to exact arithmetic on the same weights. Perplexity is the one llama-perplexity prints.
"""

import argparse
import json
import math
import os
import sys
import tempfile

import llama_cpp as ll
import numpy as np

import llama
from requantise import quantise


def log_sum_exp(logits: np.ndarray) -> float:
    top = float(logits.max())
    return top + math.log(float(np.exp(logits.astype(np.float64) - top).sum()))


def case(model: llama.Model, context: llama.Context, name: str, prompt: str, count: int, top: int) -> dict:
    """Prompt ids, the last position's logits and `count` greedy tokens (lowest id wins ties, never stopped)."""
    tokens = model.tokenize(prompt)
    context.clear()
    context.run(tokens)
    logits = context.logits()
    order = np.argsort(-logits, kind="stable")[:top]
    report = {
        "name": name,
        "prompt": prompt,
        "prompt_tokens": tokens,
        f"last_logits_top{top}": [{"id": int(i), "logit": round(float(logits[i]), 6)} for i in order],
        "last_logits_logsumexp": round(log_sum_exp(logits), 6),
        "last_logits_mean": round(float(logits.mean(dtype=np.float64)), 6),
        "last_logits_rms": round(float(np.sqrt(np.mean(logits.astype(np.float64) ** 2))), 6),
    }
    chosen, best, margin, end = [], [], [], -1
    for step in range(count):
        first = int(np.argmax(logits))
        second = float(np.partition(logits, -2)[-2])
        chosen.append(first)
        best.append(round(float(logits[first]), 4))
        margin.append(round(float(logits[first]) - second, 4))
        if end < 0 and ll.llama_vocab_is_eog(model.vocab, first):
            end = step
        if step + 1 < count:
            context.run([first])
            logits = context.logits()
    report |= {
        "tokens": chosen,
        "top1_logit": best,
        "top1_minus_top2": margin,
        "first_eog_index": end,
        "text_hex": b"".join(model.piece(token) for token in chosen).hex(),
    }
    return report


def perplexity(model: llama.Model, args, text: str, window: int) -> dict:
    """Perplexity over whole windows, counted over each window's second half, as llama-perplexity does it."""
    tokens = model.tokenize(text)
    add_bos = ll.llama_vocab_get_add_bos(model.vocab)
    if len(tokens) < 2 * window:
        raise ValueError(f"the text has {len(tokens)} tokens; {2 * window} are needed for windows of {window}")
    first = window // 2
    loss, counted = 0.0, 0
    with llama.Context(model, window, args.threads, kv=args.kv, flash=args.flash) as context:
        for begin in range(0, len(tokens) - window + 1, window):
            part = list(tokens[begin:begin + window])
            if add_bos:
                part[0] = ll.llama_vocab_bos(model.vocab)
            context.clear()
            for start in range(0, window, 512):
                rows = range(start, min(start + 512, window))
                context.run_rows((part[i], i, 0, first <= i < window - 1) for i in rows)
                for i in rows:
                    if first <= i < window - 1:
                        logits = context.logits(i - start)
                        loss += log_sum_exp(logits) - float(logits[tokens[begin + i + 1]])
                        counted += 1
    return {"window": window, "tokens": counted, "nll": loss / counted, "perplexity": math.exp(loss / counted)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-p", "--prompt", action="append", default=[])
    parser.add_argument("--prompt-file", action="append", default=[])
    parser.add_argument("-n", "--generate", type=int, default=48)
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-c", "--context", type=int, help="cells of the cache (default 2048), or the window of --perplexity (default 512)")
    parser.add_argument("--perplexity", metavar="TEXTFILE")
    parser.add_argument("--kv", choices=sorted(llama.KV_TYPES), default="f16")
    parser.add_argument("--flash", choices=sorted(llama.FLASH), default="auto")
    parser.add_argument("--exact", action="store_true", help="weights expanded to F32, f32 KV, no flash attention")
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    if args.exact:
        args.kv, args.flash = "f32", "off"

    llama.quiet()
    with tempfile.TemporaryDirectory() as scratch:
        path = args.model
        if args.exact:
            path = os.path.join(scratch, "expanded.gguf")
            quantise(args.model, path, "F32")
        with llama.Model(path) as model:
            report = {
                "producer": f"llama-cpp-python {ll.__version__}",
                "system": ll.llama_print_system_info().decode().strip(" |"),
                "model_file": os.path.basename(args.model),
                "model_desc": model.description(),
                "exact": args.exact,
                "n_threads": args.threads,
                "kv_type": args.kv,
                "flash_attn": args.flash,
                "n_vocab": model.n_vocab,
                "add_special": True,
                "parse_special": True,
                "sampling": "greedy argmax, lowest id wins ties, not stopped at end-of-generation tokens",
                "cases": [],
            }
            prompts = [(f"prompt {i}", text) for i, text in enumerate(args.prompt, 1)]
            for path in args.prompt_file:
                with open(path, encoding="utf-8", newline="") as file:
                    prompts.append((os.path.basename(path), file.read()))
            if prompts:
                with llama.Context(model, args.context or 2048, args.threads, kv=args.kv, flash=args.flash) as context:
                    report["cases"] = [case(model, context, name, text, args.generate, args.top) for name, text in prompts]
            if args.perplexity:
                with open(args.perplexity, encoding="utf-8", newline="") as file:
                    report["perplexity"] = perplexity(model, args, file.read(), args.context or 512)
    text = json.dumps(report, indent=1, ensure_ascii=False)
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
