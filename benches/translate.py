"""Times Sluice and Hugging Face transformers on the same sentences and prints a table. benches/translate.sh starts it.

Every sentence gets exactly 32 new tokens by greedy search. One round runs every contender once, each in a process of its
own; a ratio is the median over the rounds of a contender's speed over the reference's at batch 64 in the same round.
Loading is counted on neither side; Hugging Face is warmed up by one batch, Sluice is not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

NEW_TOKENS = 32
LANGUAGES = ["--source", "eng_Latn", "--target", "fra_Latn"]


def arguments():
    p = argparse.ArgumentParser(prog="./x bench translate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ["--checkpoint", "--python", "--reference", "--sluice"]:
        p.add_argument(name, required=True, help=argparse.SUPPRESS)
    p.add_argument("--pairs", type=int, default=5, help="rounds (default 5)")
    p.add_argument("--sentences", default="64,512", help="corpora: 64 sentences, repeated to so many (default 64,512)")
    p.add_argument("--dtypes", default="f32,bf16", help="precisions (default f32,bf16)")
    p.add_argument("--batches", default="32,64", help="the reference's batches (default 32,64; 64 is what ratios refer to)")
    p.add_argument("--batch-tokens", type=int, help="Sluice's --batch-tokens (default: its own)")
    p.add_argument("--ours-only", action="store_true", help="leave the reference out: only Sluice's speed and phases")
    return p.parse_args()


def corpus(checkpoint, count, scratch):
    """The checkpoint's 64 sentences repeated to `count`: a text file, and a folder for the reference (links, its own ids)."""
    lines = open(os.path.join(checkpoint, "bench.txt"), encoding="utf-8").read().splitlines()
    ids = json.load(open(os.path.join(checkpoint, "bench_ids.json")))
    folder = os.path.join(scratch, f"nllb-moe-{count}")
    os.mkdir(folder)
    for name in os.listdir(checkpoint):
        if name not in ("bench.txt", "bench_ids.json"):
            os.symlink(os.path.abspath(os.path.join(checkpoint, name)), os.path.join(folder, name))
    ids["ids"] = [ids["ids"][i % len(ids["ids"])] for i in range(count)]
    json.dump(ids, open(os.path.join(folder, "bench_ids.json"), "w"))
    text = os.path.join(folder, "bench.txt")
    open(text, "w", encoding="utf-8").writelines(lines[i % len(lines)] + "\n" for i in range(count))
    return text, folder


def output_of(command, env=None):
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(f"bench translate: {' '.join(command)}\n{done.stdout}{done.stderr}ended with code {done.returncode}")
    return done.stdout


def reference(a, folder, dtype, batch, count):
    command = [a.python, a.reference, folder, "--mode", "translate", "--batch", str(batch), "--dtype", dtype]
    command += ["--threads", "2", "--n", str(count), "--new", str(NEW_TOKENS)]
    said = json.loads(output_of(command).strip().splitlines()[-1])
    return dict(rate=said["tok_s"], per_cpu=said["tok_per_cpu_s"], memory=said["rss_mb"])


def sluice(a, text, folder, dtype, ranks, threads, count, scratch):
    report, out = os.path.join(scratch, "report.json"), os.path.join(scratch, "out.h5")
    command = ["mpirun", "-n", str(ranks), a.sluice, "translate", text, "--model", folder, *LANGUAGES, "--output", out]
    command += ["--overwrite", "--dtype", dtype, "--threads", str(threads), "--num-beams", "1", "--report", report]
    command += ["--min-new-tokens", str(NEW_TOKENS), "--max-new-tokens", str(NEW_TOKENS)]
    if a.batch_tokens:
        command += ["--batch-tokens", str(a.batch_tokens)]
    output_of(command)
    r = json.load(open(report))["results"]
    if r["tokens"] != count * NEW_TOKENS:
        sys.exit(f"bench translate: {r['tokens']} tokens, expected {count} x {NEW_TOKENS}")
    phases = {}
    for rank in r["phases"]:
        for name, phase in rank["phases"].items():
            if name != "load":
                phases[name] = phases.get(name, 0.0) + phase["seconds"] / len(r["phases"])
    memory = sum(r["peak_memory_bytes"]) / 2**20
    return dict(rate=r["tokens_per_second"], per_cpu=r["tokens"] / sum(r["cpu_seconds"]), memory=memory, phases=phases)


def contenders(a, count, dtype, scratch, text, folder):
    """(name, how to run it once); the reference of the ratios comes first."""
    ours = [
        (f"Sluice, {ranks} x {threads}", lambda ranks=ranks, threads=threads: sluice(a, text, folder, dtype, ranks, threads, count, scratch))
        for ranks, threads in [(1, 2), (2, 1)]
    ]
    if a.ours_only:
        return ours
    batches = sorted({int(b) for b in a.batches.split(",")} | {64}, key=lambda b: (b != 64, b))
    theirs = [
        (f"transformers, batch {batch}", lambda batch=batch: reference(a, folder, dtype, batch, count))
        for batch in batches
        if batch <= count
    ]
    return theirs + ours


def main():
    a = arguments()
    print("| sentences | dtype | engine | tokens/s | least..most | tokens / CPU s | memory MiB | ratio | least..most |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    shares = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in map(int, a.sentences.split(",")):
            text, folder = corpus(a.checkpoint, count, scratch)
            for dtype in a.dtypes.split(","):
                runs = {}
                for round in range(a.pairs):
                    for name, run in contenders(a, count, dtype, scratch, text, folder):
                        print(f"\r{count} {dtype}, round {round + 1} of {a.pairs}: {name}    ", end="", file=sys.stderr, flush=True)
                        runs.setdefault(name, []).append(run())
                print("\r" + " " * 70 + "\r", end="", file=sys.stderr, flush=True)
                shares += table(count, dtype, runs)
    print("\nWhere Sluice's time goes (medians, % of the phases, loading left out):\n")
    print("\n".join(shares))


def table(count, dtype, runs):
    base = next(iter(runs.values()))
    shares = []
    for name, rows in runs.items():
        rates, ratios = [r["rate"] for r in rows], [r["rate"] / b["rate"] for r, b in zip(rows, base)]
        middle = lambda key: statistics.median(r[key] for r in rows)
        print(
            f"| {count} | {dtype} | {name} | {statistics.median(rates):.0f} | {min(rates):.0f}..{max(rates):.0f} | {middle('per_cpu'):.0f} "
            f"| {middle('memory'):.0f} | {statistics.median(ratios):.2f} | {min(ratios):.2f}..{max(ratios):.2f} |",
            flush=True,
        )
        if "phases" in rows[0]:
            medians = {p: statistics.median(r["phases"][p] for r in rows) for p in rows[0]["phases"]}
            total = sum(medians.values())
            parts = ", ".join(f"{p} {100 * s / total:.0f}" for p, s in sorted(medians.items(), key=lambda x: -x[1]) if s > 0.005 * total)
            shares.append(f"- {count} {dtype} {name}: {parts}")
    return shares


main()
