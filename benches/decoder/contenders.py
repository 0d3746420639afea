"""What ./x bench score and ./x bench generate share: engines, rounds, the table.

One round runs every contender once, each in a process of its own; a ratio is that of two speeds of the same round. Loading is counted
on no side; peers are warmed up by a batch, Sluice is not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def arguments(name, description):
    p = argparse.ArgumentParser(prog=f"./x bench {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for hidden in ["python", "sluice", "checkpoint", "llama", "gguf", "vllm", "ceiling"]:
        p.add_argument(f"--{hidden}", default="", help=argparse.SUPPRESS)
    p.add_argument("--rounds", metavar="N", type=int, default=5, help="rounds (default 5)")
    p.add_argument("--dtypes", metavar="TYPE,...", default="f32,bf16", help="precisions (default f32,bf16)")
    p.add_argument("--threads", metavar="N", type=int, default=2, help="threads of every engine (default 2)")
    p.add_argument("--vllm-threads", metavar="N", type=int, default=1, help="threads of vLLM, compared with as many of Sluice (default 1)")
    p.add_argument("--batches", metavar="N,...", default="8,32", help="batches of transformers (default 8,32)")
    return p


def last_line(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}ended with code {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def speed(said):
    return said["tokens"] / said["seconds"], said["result"]


def sluice(a, command, out, dtype, threads, result):
    """Tokens a second of a job, by its report; `result` turns the report's figures into tokens and what came out."""
    report = f"{out}.json"
    command = [a.sluice, *command, "--output", out, "--overwrite", "--dtype", dtype, "--threads", threads, "--report", report]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}ended with code {done.returncode}")
    with open(report, encoding="utf-8") as file:
        results = json.load(file)["results"]
    tokens, came_out = result(results)
    return tokens / results["seconds"], came_out


def bandwidth(a):
    """Bytes a second that as many threads as Sluice has read from memory."""
    done = subprocess.run([a.ceiling, "--bench", "ceiling"], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        if line.startswith(f"ceiling {a.threads} bytes read: "):
            return float(line.split()[-1])
    sys.exit(f"{a.ceiling} --bench ceiling does not say how fast {a.threads} threads read (it knows 1 and 2)")


def peers(a, folder, ids, dtype, job):
    """The engines beside Sluice: name, threads, what runs one."""
    for batch in map(int, a.batches.split(",")):
        command = [a.python, "-B", f"{HERE}/run_transformers.py", folder, ids, a.threads, dtype, batch, *job]
        yield f"transformers, batch {batch}", a.threads, lambda command=command: speed(last_line(command))
    if a.llama:
        command = [a.llama, "-B", f"{HERE}/run_llama.py", f"{a.gguf}/olmoe-{dtype}.gguf", ids, a.threads, *job]
        yield "llama.cpp", a.threads, lambda command=command: speed(last_line(command))
    if a.vllm:
        command = [a.vllm, "-B", f"{HERE}/run_vllm.py", folder, ids, a.vllm_threads, dtype, *job]
        yield "vLLM", a.vllm_threads, lambda command=command: speed(last_line(command))


def compare(title, a, ours, theirs, show):
    """`ours(dtype, threads)` and each of `theirs(dtype)` once a round; `show` says in a few words how what came out differs."""
    contenders = {}
    for dtype in a.dtypes.split(","):
        others = list(theirs(dtype))
        for threads in sorted({threads for _, threads, _ in others}, reverse=True):
            contenders[dtype, "Sluice", threads] = lambda d=dtype, t=threads: ours(d, t)
        for name, threads, run in others:
            contenders[dtype, name, threads] = run
    rates, results = {c: [] for c in contenders}, {}
    for _ in range(a.rounds):
        for contender, run in contenders.items():
            rate, results[contender] = run()
            rates[contender].append(rate)
    print(f"\n{title}, {a.rounds} rounds (medians; Sluice's speed over theirs on as many threads in the same round)\n")
    print("| dtype | engine | threads | tokens/s | least..most | Sluice is | least..most | came out |\n|---|---|---|---|---|---|---|---|")
    for (dtype, name, threads), speeds in rates.items():
        mine = dtype, "Sluice", threads
        ratios = [o / t for o, t in zip(rates[mine], speeds)]
        print(
            f"| {dtype} | {name} | {threads} | {statistics.median(speeds):.0f} | {min(speeds):.0f}..{max(speeds):.0f} "
            f"| {statistics.median(ratios):.2f} x | {min(ratios):.2f}..{max(ratios):.2f} "
            f"| {show(results[mine], results[dtype, name, threads])} |",
            flush=True,
        )
