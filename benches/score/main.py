"""Times Sluice and its peers on the same texts and prints a table. benches/score.sh starts it.

Texts are 64 of 128 tokens, and 16 of 1,024. One round runs every contender once, each in a process of its own; a ratio is that of two
speeds of the same round. Loading is counted on no side; peers are warmed up by a batch, Sluice is not. Tokens are those that are
read: the first of a text has no score.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile


def output_of(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}ended with code {done.returncode}")
    return done.stdout


def last_line(command):
    return json.loads(output_of(command).strip().splitlines()[-1])


class Corpus:
    """A checkpoint's 64 texts of 128 tokens, joined by `join` and repeated to `count`, in a folder of links to the checkpoint."""

    def __init__(self, checkpoint, join, count, scratch):
        self.name = f"{count} x {128 * join}"
        self.count = count
        self.folder = os.path.join(scratch, f"{count}-{join}")
        self.text, self.ids = os.path.join(self.folder, "bench.txt"), os.path.join(self.folder, "bench_ids.json")
        os.makedirs(self.folder)
        for name in os.listdir(checkpoint):
            if name not in ("bench.txt", "bench_ids.json"):
                os.symlink(os.path.abspath(os.path.join(checkpoint, name)), os.path.join(self.folder, name))
        with open(os.path.join(checkpoint, "bench.txt"), encoding="utf-8") as file:
            lines = file.read().splitlines()
        with open(os.path.join(checkpoint, "bench_ids.json"), encoding="utf-8") as file:
            data = json.load(file)
        pieces = [range(i * join, (i + 1) * join) for i in range(len(lines) // join)]
        chosen = [pieces[i % len(pieces)] for i in range(count)]
        data["ids"] = [[token for i in piece for token in data["ids"][i]] for piece in chosen]
        with open(self.ids, "w", encoding="utf-8") as file:
            json.dump(data, file)
        with open(self.text, "w", encoding="utf-8") as file:
            file.writelines(" ".join(lines[i] for i in piece) + "\n" for piece in chosen)


def sluice(a, corpus, dtype, more=()):
    report, out = os.path.join(corpus.folder, "report.json"), os.path.join(corpus.folder, "out.h5")
    command = [a.sluice, "score", corpus.text, "--model", corpus.folder, "--output", out, "--overwrite", "--dtype", dtype]
    output_of([*command, "--threads", str(a.threads), "--report", report, *more])
    with open(report, encoding="utf-8") as file:
        results = json.load(file)["results"]
    return (results["tokens"] + corpus.count) / results["seconds"]


def transformers(a, corpus, dtype, batch):
    command = [a.python, a.reference, corpus.folder, "--mode", "score", "--batch", str(batch), "--dtype", dtype]
    return last_line([*command, "--threads", str(a.threads), "--n", str(corpus.count)])["tok_s"]


def llama(a, corpus, dtype):
    once = os.path.join(os.path.dirname(os.path.abspath(__file__)), "llama_once.py")
    said = last_line([a.llama, once, os.path.join(a.gguf, f"olmoe-{dtype}.gguf"), corpus.ids, str(a.threads)])
    return said["tokens"] / said["seconds"]


def arguments():
    p = argparse.ArgumentParser(prog="./x bench score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["python", "reference", "sluice", "checkpoint", "llama", "gguf"]:
        p.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    p.add_argument("--rounds", metavar="N", type=int, default=5, help="rounds (default 5)")
    p.add_argument("--dtypes", metavar="TYPE,...", default="f32,bf16", help="precisions (default f32,bf16)")
    p.add_argument("--threads", metavar="N", type=int, default=2, help="threads of every engine (default 2)")
    p.add_argument("--batches", metavar="N,...", default="8,32", help="batches of transformers (default 8,32)")
    return p.parse_args()


def main():
    a = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        for join, count in [(1, 64), (8, 16)]:
            corpus = Corpus(a.checkpoint, join, count, scratch)
            contenders = {}
            for dtype in a.dtypes.split(","):
                contenders[dtype, "Sluice"] = lambda dtype=dtype: sluice(a, corpus, dtype)
                for batch in map(int, a.batches.split(",")):
                    contenders[dtype, f"transformers, batch {batch}"] = lambda d=dtype, b=batch: transformers(a, corpus, d, b)
                if a.llama:
                    contenders[dtype, "llama.cpp"] = lambda dtype=dtype: llama(a, corpus, dtype)
            rates = {contender: [] for contender in contenders}
            for _ in range(a.rounds):
                for contender, run in contenders.items():
                    rates[contender].append(run())
            print(f"\n{corpus.name} tokens, {a.threads} threads, {a.rounds} rounds (medians; Sluice's speed over theirs in the same round)\n")
            print("| dtype | engine | tokens/s | least..most | Sluice is | least..most |\n|---|---|---|---|---|---|")
            for (dtype, name), speeds in rates.items():
                ratios = [ours / theirs for ours, theirs in zip(rates[dtype, "Sluice"], speeds)]
                print(
                    f"| {dtype} | {name} | {statistics.median(speeds):.0f} | {min(speeds):.0f}..{max(speeds):.0f} "
                    f"| {statistics.median(ratios):.2f} x | {min(ratios):.2f}..{max(ratios):.2f} |",
                    flush=True,
                )


main()
