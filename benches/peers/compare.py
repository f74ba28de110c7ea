#!/usr/bin/env python3
"""Interleaved comparison of this engine with llama.cpp on the same files, threads and tests.

    compare.py -m FILE [-m FILE ...] [-t 2] [--rounds 5] [-p 512] [-n 128] [--depth D] [--sequences N]
               [--name NAME] [--only peer]

Machines drift by tens of per cent between minutes, so the two take turns: each round runs our `bench` example once
and the peer once with flash attention off and once with it on; the order turns round by round. The medians over the
rounds are compared, the peer's with the better of its two settings for each test. The result is printed as a table
and written to benches/record/DATE-NAME.json with a description of the machine.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TESTS = ("prefill", "decode")


def machine() -> dict:
    """What a reader of the record has to know about this machine."""
    facts = {"system": platform.system(), "kernel": platform.release(), "architecture": platform.machine(), "cores": os.cpu_count()}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            fields = dict(
                (part.strip() for part in line.split(":", 1)) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
        wanted = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sve")
        present = (fields.get("flags") or fields.get("Features") or "").split()
        facts["cpu"] = fields.get("model name", platform.processor())
        facts["cpu_family_model"] = f"{fields.get('cpu family', '?')}/{fields.get('model', '?')}"
        facts["flags"] = [flag for flag in wanted if flag in present]
        with open("/proc/meminfo", encoding="utf-8") as file:
            facts["memory_bytes"] = int(file.readline().split()[1]) * 1024
    except OSError:
        facts["cpu"] = platform.processor()
    return facts


def version() -> str | None:
    """The commit of our side, and whether the tree had changes that no commit has."""
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return done.stdout.strip() or None


def built(example: str, given: str | None) -> str:
    """Our program of that name: the one given, or else one that is built now."""
    if given:
        return os.path.abspath(given)
    subprocess.run(["cargo", "build", "--release", "--example", example], cwd=ROOT, check=True)
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    return os.path.join(target, "release", "examples", example)


def begin_record(settings: dict) -> dict:
    """A record of now, of this machine and of our version, without results."""
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"date": date, "version": version(), "machine": machine(), "settings": settings, "results": []}


def write_record(record: dict, folder: str, name: str) -> None:
    os.makedirs(folder, exist_ok=True)
    target = os.path.join(folder, f"{record['date'][:10]}-{name}.json")
    with open(target, "w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.write("\n")
    print(f"written to {os.path.relpath(target)}", file=sys.stderr)


def busy_seconds() -> float | None:
    """Processor seconds all programs have used, where the system tells."""
    try:
        with open("/proc/stat", encoding="utf-8") as file:
            ticks = [int(part) for part in file.readline().split()[1:9]]
    except OSError:
        return None
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def run(command: list[str]) -> tuple[dict, float | None]:
    """Run one measurement; its JSON and the share of the machine that other programs took meanwhile."""
    before, own, begin = busy_seconds(), resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}")
    wall, after = time.monotonic() - begin, busy_seconds()
    other = None
    if before is not None and after is not None:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        mine = spent.ru_utime + spent.ru_stime - own.ru_utime - own.ru_stime
        other = round(max(0.0, (after - before - mine) / (wall * (os.cpu_count() or 1))), 3)
    return json.loads(done.stdout), other


def compare(path: str, args, ours: list[str] | None) -> dict:
    flags = ["-p", str(args.prompt), "-n", str(args.generate), "-t", str(args.threads), "-r", str(args.repetitions),
             "--sequences", str(args.sequences), "--depth", str(args.depth), "--json"]
    peer = [sys.executable, os.path.join(HERE, "peer.py"), "-m", path, *flags]
    sides = {"peer-off": [*peer, "--flash", "off"], "peer-on": [*peer, "--flash", "on"]}
    if ours:
        sides = {"ours": [*ours, "-m", path, *flags], **sides}
    rounds = []
    for number in range(args.rounds):
        order = list(sides)
        order = order[number % len(order):] + order[:number % len(order)]
        for side in order:
            report, other = run(sides[side])
            rates = {test: (report.get(f"{test}_tokens_per_s") or {}).get("median") for test in TESTS}
            rounds.append({"round": number, "side": side, "other_cpu": other, **rates, "report": report})
            print(f"  {number + 1}/{args.rounds} {side:9} " + "  ".join(f"{test} {rate}" for test, rate in rates.items())
                  + f"  other cpu {other}", file=sys.stderr, flush=True)

    def median(side: str, test: str) -> float | None:
        rates = [entry[test] for entry in rounds if entry["side"] == side and entry[test] is not None]
        return statistics.median(rates) if rates else None

    result = {"file": os.path.basename(path), "bytes": os.path.getsize(path), "tests": [], "rounds": rounds}
    result["model"] = next(entry["report"]["model"] for entry in rounds if entry["side"] != "ours")
    for test in TESTS:
        peers = {side: median(side, test) for side in ("peer-off", "peer-on")}
        best = max((side for side in peers if peers[side] is not None), key=lambda side: peers[side], default=None)
        if best is None:
            continue
        mine = median("ours", test)
        depth = f" @ d{args.depth}" if args.depth else ""
        label = f"pp{args.prompt}" if test == "prefill" else f"tg{args.generate}" + (f" x{args.sequences}" if args.sequences > 1 else "")
        result["tests"].append({
            "test": label + depth,
            "ours": mine,
            "peer": peers[best],
            "peer_flash": best.removeprefix("peer-"),
            "peer_flash_off": peers["peer-off"],
            "peer_flash_on": peers["peer-on"],
            "ratio": round(mine / peers[best], 3) if mine is not None else None,
        })
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", action="append", required=True)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-r", "--repetitions", type=int, default=2, help="repetitions inside each round (default 2)")
    parser.add_argument("-p", "--prompt", type=int, default=512)
    parser.add_argument("-n", "--generate", type=int, default=128)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--ours", help="our bench program, already built (default: build it with cargo)")
    parser.add_argument("--only", choices=["both", "peer"], default="both")
    parser.add_argument("--name", default="compare", help="name of the record")
    parser.add_argument("--record-dir", default=os.path.join(ROOT, "benches", "record"))
    args = parser.parse_args()
    args.model = [os.path.abspath(path) for path in args.model]

    ours = [built("bench", args.ours)] if args.only == "both" else None
    settings = ("threads", "rounds", "repetitions", "prompt", "generate", "depth", "sequences")
    record = begin_record({key: getattr(args, key) for key in settings})
    for path in args.model:
        print(os.path.basename(path), file=sys.stderr)
        record["results"].append(compare(path, args, ours))

    print("| file | model, type | test | ours tok/s | llama.cpp tok/s | its flash attention | ratio |")
    print("|---|---|---|---:|---:|---|---:|")
    for result in record["results"]:
        for test in result["tests"]:
            mine = "–" if test["ours"] is None else f"{test['ours']:.1f}"
            ratio = "–" if test["ratio"] is None else f"{test['ratio']:.2f}"
            print(f"| {result['file']} | {result['model']} | {test['test']} | {mine} | {test['peer']:.1f} | {test['peer_flash']} | {ratio} |")

    shares = [entry["other_cpu"] for result in record["results"] for entry in result["rounds"] if entry["other_cpu"] is not None]
    record["other_cpu_max"] = max(shares, default=None)
    if shares and max(shares) > 0.05:
        print(f"Other programs took up to {max(shares):.0%} of the processor: these ratios say little.")

    write_record(record, args.record_dir, args.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
