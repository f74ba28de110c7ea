#!/usr/bin/env python3
"""Writes the tables of README.md from records in benches/record: table.py RECORD.json [RECORD.json ...]

Records of compare.py make the table of speeds, one of agree.py that of exactness.
"""

import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SPEEDS, EXACTNESS, END = "<!-- speeds: benches/peers/table.py -->", "<!-- exactness: benches/peers/table.py -->", "<!-- /table -->"


def rows(record: dict) -> list[str]:
    lines = []
    for result in record["results"]:
        for test in result["tests"]:
            lines.append(
                f"| {result['file']} | {test['test']} | {test['ours']:.0f} | {test['peer']:.0f} | {test['ratio']:.2f} |")
    return lines


def speeds(records: list[dict]) -> list[str]:
    machine, settings = records[0]["machine"], records[0]["settings"]
    return [
        f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['flags'])}; {settings['threads']} threads; "
        f"{records[0]['date'][:10]}. Tokens per second, medians of interleaved rounds; llama.cpp with the better of its "
        "flash attention on and off. `pp512`: a prompt of so many tokens; `tg128`: so many tokens one by one; `x8`: for 8 "
        "sequences at once; `@ d4096`: behind 4,096 others.",
        "",
        "| file | test | Tenure | llama.cpp | ratio |",
        "| --- | --- | ---: | ---: | ---: |",
        *(row for record in records for row in rows(record)),
    ]


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
    agreed = [record for record in records if "greedy" in record["settings"]]
    compared = [record for record in records if record not in agreed]
    if compared:
        text = replace(text, SPEEDS, speeds(compared))
    if agreed:
        text = replace(text, EXACTNESS, exactness(agreed))
    with open(readme, "w", encoding="utf-8") as file:
        file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
