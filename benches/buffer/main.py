"""Times translating and scoring with some of the experts in memory beside all of them, in the same rounds, and prints a table.

A round runs every contender once, each in a process of its own, in an order that goes round; a ratio is that of two speeds of the same
round. Loading is counted on no side. The checkpoint has 64 experts a layer, few of which get most tokens. Translation: 512 sentences,
about 256 in flight, exactly 32 tokens each. Scoring: pairs, all resident in its own portions of 2,048 tokens, buffered in sweeps of
4,096. What is not in memory comes

  file        from a file of packed experts, past the system's cache (O_DIRECT)
  checkpoint  from the checkpoint, converted each time, through the system's cache
  link        from memory, over a link of 12 GB/s
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

WANTED = {"translate": 0.85, "score": 0.95}


def arguments():
    p = argparse.ArgumentParser(prog="./x bench buffer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for hidden in ["sluice", "checkpoint"]:
        p.add_argument(f"--{hidden}", default="", help=argparse.SUPPRESS)
    p.add_argument("--rounds", metavar="N", type=int, default=5, help="rounds (default 5)")
    p.add_argument("--jobs", metavar="JOB,...", default="translate,score", help="translate, score (default both)")
    p.add_argument("--dtypes", metavar="TYPE,...", default="f32,bf16", help="precisions (default f32,bf16)")
    p.add_argument("--threads", metavar="N", type=int, default=2, help="threads of the one rank (default 2)")
    p.add_argument("--shares", metavar="SHARE,...", default="50%,25%,10%", help="--expert-memory (default 50%%,25%%,10%%)")
    p.add_argument("--from", dest="tiers", metavar="TIER,...", default="file,checkpoint,link", help="see above (default all; below half of the experts: file)")
    p.add_argument("--extra", metavar="'OPTION ...'", default="", help="options of Sluice for all buffered runs, e.g. '--prefetch off'")
    return p.parse_args()


def corpora(a, scratch):
    with open(os.path.join(a.checkpoint, "bench.txt"), encoding="utf-8") as file:
        lines = file.read().splitlines()
    sentences = [lines[i % len(lines)] for i in range(512)]
    paths = {"translate": os.path.join(scratch, "in.txt"), "score": os.path.join(scratch, "pairs.tsv")}
    with open(paths["translate"], "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in sentences)
    with open(paths["score"], "w", encoding="utf-8") as file:
        file.write("source\ttarget\n")
        file.writelines(f"{one}\t{other}\n" for one, other in zip(sentences, sentences[7:] + sentences[:7]))
    return paths


def contenders(a, cache):
    yield "all in memory", []
    for share in a.shares.split(","):
        for tier in a.tiers.split(","):
            below = {"file": ["--cache-dir", cache], "checkpoint": [], "link": ["--simulate-link", "12G"]}[tier]
            if tier == "file" or share == "50%":
                yield f"{share}, {tier}", ["--expert-memory", share, *below, *a.extra.split()]


def run(a, job, text, dtype, options, scratch):
    report, out = os.path.join(scratch, "report.json"), os.path.join(scratch, "out.h5")
    command = [a.sluice, job, text, "--model", a.checkpoint, "--source", "eng_Latn", "--target", "fra_Latn", "--dtype", dtype]
    command += {"translate": ["--max-length", "33", "--batch-tokens", "8192"], "score": ["--pairs"]}[job]
    command += ["--threads", a.threads, "--output", out, "--overwrite", "--report", report, *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}ended with code {done.returncode}")
    with open(report, encoding="utf-8") as file:
        return json.load(file)["results"]


def spread(values, digits):
    return f"{statistics.median(values):.{digits}f} | {min(values):.{digits}f}..{max(values):.{digits}f}"


def main():
    a = arguments()
    met = []
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(a.checkpoint))) as scratch:
        cache = os.path.join(scratch, "cache")
        texts = corpora(a, scratch)
        for job in a.jobs.split(","):
            print(f"\n| {job} | dtype | experts | tokens/s | least..most | ratio | least..most | found, % | loaded a sweep | waited, s | memory, MiB |")
            print("|" + "---|" * 11)
            for dtype in a.dtypes.split(","):
                all_of = list(contenders(a, cache))
                seen = {name: [] for name, _ in all_of}
                # The file is made once, outside the rounds.
                for name, options in all_of:
                    if "--cache-dir" in options:
                        run(a, job, texts[job], dtype, options, scratch)
                        break
                for turn in range(a.rounds):
                    at = turn % len(all_of)
                    for name, options in all_of[at:] + all_of[:at]:
                        seen[name].append(run(a, job, texts[job], dtype, options, scratch))
                first = [r["tokens_per_second"] for r in seen[all_of[0][0]]]
                for name, _ in all_of:
                    results = seen[name]
                    speeds = [r["tokens_per_second"] for r in results]
                    ratios = [speed / of for speed, of in zip(speeds, first)]
                    line = [job, dtype, name, spread(speeds, 0), spread(ratios, 2)]
                    tally = (results[-1]["buffer"][0] or {}).get("tally")
                    if tally:
                        sweeps = tally["encode"][0] + tally["decode"][0]
                        line += [
                            f"{100 * tally['found'] / max(tally['uses'], 1):.1f}",
                            f"{tally['loads'] / max(sweeps, 1):.1f}",
                            f"{statistics.median(r['buffer'][0]['tally']['waited'] for r in results):.2f}",
                        ]
                    else:
                        line += ["", "", ""]
                    line.append(f"{statistics.median(r['peak_memory_bytes'][0] for r in results) / 2**20:.0f}")
                    print("| " + " | ".join(map(str, line)) + " |", flush=True)
                    if name in ("50%, file", "50%, link"):
                        ratio = statistics.median(ratios)
                        met.append((job, dtype, name, WANTED[job], ratio, min(ratios), max(ratios)))
        print("\n| wanted | at least | found | least..most | |")
        print("|---|---|---|---|---|")
        for job, dtype, name, wanted, ratio, least, most in met:
            verdict = "met" if ratio >= wanted else "NOT MET"
            print(f"| {job} {dtype}, {name} over all in memory | {wanted} | {ratio:.2f} | {least:.2f}..{most:.2f} | {verdict} |")


main()
