#!/usr/bin/env python3
"""How near answers are to those of the same weights computed in 32-bit floats, ours and llama.cpp's.

    agree.py -m FILE [-m FILE ...] [--ours PROGRAM] [--name NAME]

The truth is llama.cpp with the weights expanded to F32, an f32 cache and no flash attention (`truth.py --exact`); its
other column is llama.cpp as it comes. Ours is the `generate` example as it comes. For each prompt: the root mean square
of the differences over the 20 largest logits of the truth after the prompt, and how many greedy tokens (of 48) are
the truth's. The result is printed as a table and written to benches/record/DATE-NAME.json.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile

from compare import HERE, ROOT, begin_record, built, write_record

GREEDY, TOP = 48, 20

PROMPTS = {
    "short": "The capital of Norway is",
    "unicode": "Żółw i jeż poszli na spacer 🐢🦔. Они встретили 猫, and the cat said: «¿Qué tal?» —",
    "code": "def median(values):\n    \"\"\"The middle of a list of numbers, sorted.\"\"\"\n    values = sorted(values)\n    n = len(values)\n",
    "dialogue": "Anna: Did the parcel come?\nBen: Not yet. It should be here by noon.\nAnna: And if it is not?\nBen:",
    # The licence, some 1,500 tokens of it.
    "long": None,
}


def prompt(name: str) -> str:
    if PROMPTS[name] is not None:
        return PROMPTS[name]
    with open(os.path.join(ROOT, "LICENSE-APACHE"), encoding="utf-8") as file:
        return file.read()[:6000]


def truth(model: str, folder: str, exact: bool) -> list[dict]:
    out = os.path.join(folder, "exact.json" if exact else "default.json")
    flags = [flag for name in PROMPTS for flag in ("-p", prompt(name))]
    # Of the other side every logit is wanted, as the truth's largest may not be among its own largest.
    top = TOP if exact else 1 << 20
    command = [sys.executable, os.path.join(HERE, "truth.py"), "-m", model, *flags, "-n", str(GREEDY), "--top", str(top), "-o", out]
    subprocess.run(command + (["--exact"] if exact else []), check=True)
    with open(out, encoding="utf-8") as file:
        return json.load(file)["cases"]


def answer(ours: str, model: str, text: str, vocab: int) -> dict:
    command = [ours, "-m", model, "--raw", "--prompt-file", "-", "-n", str(GREEDY), "--temp", "0", "--ignore-eos",
               "--logits-top", str(vocab), "--json"]
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def logits(case: dict) -> dict[int, float]:
    entries = next(value for key, value in case.items() if key.startswith("last_logits_top"))
    return {entry["id"]: entry["logit"] for entry in entries}


def rms(of: dict[int, float], true: dict[int, float]) -> float:
    return math.sqrt(sum((of[id] - logit) ** 2 for id, logit in true.items()) / len(true))


def agreeing(of: list[int], true: list[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(of, true)) if a != b), min(len(of), len(true)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", action="append", required=True)
    parser.add_argument("--ours", help="our generate program, already built (default: build it with cargo)")
    parser.add_argument("--name", default="agree", help="name of the record")
    parser.add_argument("--record-dir", default=os.path.join(ROOT, "benches", "record"))
    args = parser.parse_args()
    ours = built("generate", args.ours)
    record = begin_record({"greedy": GREEDY, "top": TOP})
    print("| file | prompt | tokens | error, ours | error, llama.cpp | greedy, ours | greedy, llama.cpp |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for model in map(os.path.abspath, args.model):
        with tempfile.TemporaryDirectory() as folder:
            exact, default = truth(model, folder, True), truth(model, folder, False)
        result = {"file": os.path.basename(model), "cases": []}
        for name, true, peer in zip(PROMPTS, exact, default):
            mine = answer(ours, model, prompt(name), 1 << 20)
            if mine["prompt_tokens"] != true["prompt_tokens"]:
                raise SystemExit(f"{model}, {name}: other tokens than llama.cpp's")
            case = {
                "prompt": name,
                "tokens": len(true["prompt_tokens"]),
                "error_ours": rms(dict(mine["last_logits_top"]), logits(true)),
                "error_peer": rms(logits(peer), logits(true)),
                "greedy_ours": agreeing(mine["tokens"], true["tokens"]),
                "greedy_peer": agreeing(peer["tokens"], true["tokens"]),
            }
            result["cases"].append(case)
            print("| {file} | {prompt} | {tokens} | {error_ours:.4f} | {error_peer:.4f} | {greedy_ours} | {greedy_peer} |".format(
                file=result["file"], **case), flush=True)
        record["results"].append(result)

    write_record(record, args.record_dir, args.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
