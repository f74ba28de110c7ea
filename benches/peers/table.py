#!/usr/bin/env python3
"""Writes the table of README.md from the records in benches/record: table.py RECORD.json [RECORD.json ...]"""

import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BEGIN, END = "<!-- measured: benches/peers/table.py -->", "<!-- /measured -->"


def rows(record: dict) -> list[str]:
    lines = []
    for result in record["results"]:
        for test in result["tests"]:
            lines.append(
                f"| {result['file']} | {test['test']} | {test['ours']:.0f} | {test['peer']:.0f} | {test['ratio']:.2f} |")
    return lines


def main() -> int:
    records = []
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            records.append(json.load(file))
    if not records:
        raise SystemExit(__doc__)
    machine, settings = records[0]["machine"], records[0]["settings"]
    lines = [
        BEGIN,
        f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['flags'])}; {settings['threads']} threads; "
        f"{records[0]['date'][:10]}. Tokens per second, medians of interleaved rounds; llama.cpp with the better of its "
        "flash attention on and off. `pp512`: a prompt of 512 tokens; `tg128`: 128 tokens one by one; `x8`: for 8 "
        "sequences at once; `@ d4096`: behind 4,096 others.",
        "",
        "| file | test | Tenure | llama.cpp | ratio |",
        "| --- | --- | ---: | ---: | ---: |",
        *(row for record in records for row in rows(record)),
        END,
    ]
    readme = os.path.join(ROOT, "README.md")
    with open(readme, encoding="utf-8") as file:
        text = file.read()
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    with open(readme, "w", encoding="utf-8") as file:
        file.write(before + "\n".join(lines) + after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
