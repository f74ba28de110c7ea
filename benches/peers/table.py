#!/usr/bin/env python3
"""Writes the tables of README.md from records in benches/record: table.py RECORD.json [RECORD.json ...]

Records of compare.py make the tables of speeds, one for each machine and day, those of images.py the tables of images, and those of agree.py that
of exactness.
"""

import itertools
import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SPEEDS, EXACTNESS, END = "<!-- speeds: benches/peers/table.py -->", "<!-- exactness: benches/peers/table.py -->", "<!-- /table -->"
IMAGES = "<!-- images: benches/peers/table.py -->"
PHASES = {"prompt": "prompt, 77 tokens", "unet": "one evaluation of the U-Net", "decode": "decoding", "tiny_decode": "decoding by a TAESD"}


def rows(record: dict) -> list[str]:
    lines = []
    for result in record["results"]:
        for test in result["tests"]:
            lines.append(
                f"| {result['file']} | {test['test']} | {test['ours']:.0f} | {test['peer']:.0f} | {test['ratio']:.2f} |")
    return lines


def where(record: dict) -> str:
    machine = record["machine"]
    return (f"{machine['cpu']} (family {machine['cpu_family_model'].split('/')[0]}), {machine['cores']} cores, {', '.join(machine['flags'])}; "
            f"{record['settings']['threads']} threads; {record['date'][:10]}")


def speeds(records: list[dict]) -> list[str]:
    lines = ["Tokens per second, medians of interleaved rounds; llama.cpp, built for the machine, with the better of its flash attention on and "
             "off. `pp512`: a prompt of so many tokens; `tg128`: so many tokens one by one; `x8`: for 8 sequences at once; `@ d4096`: behind 4,096 others."]
    for place, here in itertools.groupby(sorted(records, key=where), where):
        lines += ["", f"{place}:", "", "| file | test | Tenure | llama.cpp | ratio |", "| --- | --- | ---: | ---: | ---: |"]
        lines += [row for record in here for row in rows(record)]
    return lines


def exactness(records: list[dict]) -> list[str]:
    lines = [
        "| file | prompt | tokens | error, Tenure | error, llama.cpp | greedy, Tenure | greedy, llama.cpp |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in (result for record in records for result in record["results"]):
        for case in result["cases"]:
            lines.append("| {file} | {prompt} | {tokens} | {error_ours:.3f} | {error_peer:.3f} | {greedy_ours} | {greedy_peer} |".format(
                file=result["file"], **case))
    return lines


def images(records: list[dict]) -> list[str]:
    lines = ["Seconds, and in brackets the part of the f32 multiply-adds that the processor can do; medians of interleaved rounds (stable-diffusion.cpp: one); Stable "
             "Diffusion 1.5's shapes with random weights. Multiplications are counted by the definitions; kernels of 3 x 3 need fewer by Winograd's "
             "filtering, and blocks of 8 bits (q8_0) are multiplied in integers. The peers run with their defaults. Peak memory: ours with each network in memory while it is used, theirs with all."]
    cells = lambda values: "".join(f" {value} |" for value in values)
    for record in records:
        phases = record["results"][:-1]
        sides = list(next(phase for phase in phases if phase["phase"] == "unet")["seconds"])
        lines += ["", f"{where(record)}; {record['settings']['size']}, {record['settings']['rounds']} rounds:", "", f"| |{cells(sides)}", f"| --- |{cells('---:' for _ in sides)}"]
        for phase in phases:
            fraction = phase["bound_fraction"]
            cell = lambda side: f"{phase['seconds'][side]:.2f}" + (f" ({fraction[side]:.2f})" if side in fraction else "")
            lines.append(f"| {PHASES[phase['phase']]} |" + cells(cell(side) if side in phase["seconds"] else "" for side in sides))
        peaks = record["results"][-1]["peak_bytes"]
        lines.append("| peak memory of one picture, GB |" + cells(f"{peaks[side] / 1e9:.2f}" for side in sides))
    return lines


def replace(text: str, begin: str, lines: list[str]) -> str:
    before, rest = text.split(begin, 1)
    return before + "\n".join([begin, *lines, END]) + rest.split(END, 1)[1]


def main() -> int:
    records = []
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            records.append(json.load(file))
    if not records:
        raise SystemExit(__doc__)
    readme = os.path.join(ROOT, "README.md")
    with open(readme, encoding="utf-8") as file:
        text = file.read()
    drawn = [record for record in records if "size" in record["settings"]]
    agreed = [record for record in records if "greedy" in record["settings"]]
    compared = [record for record in records if record not in agreed + drawn]
    if drawn:
        text = replace(text, IMAGES, images(drawn))
    if compared:
        text = replace(text, SPEEDS, speeds(compared))
    if agreed:
        text = replace(text, EXACTNESS, exactness(agreed))
    with open(readme, "w", encoding="utf-8") as file:
        file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
