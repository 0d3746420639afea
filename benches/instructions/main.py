"""Counts the instructions of translating a few sentences with the demo's model in float32, on one rank and one thread with AVX2 (valgrind
knows no AVX-512), and prints them by group and generated token beside those of benches/instructions.txt.

What the same number of blank lines takes, loading above all, is taken off.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import callgrind

SENTENCES, NEW_TOKENS = 4, 8
FIGURES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "instructions.txt")


def arguments():
    p = argparse.ArgumentParser(prog="./x bench instructions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sluice", default="", help=argparse.SUPPRESS)
    p.add_argument("--update", action="store_true", help="write what is found to benches/instructions.txt")
    p.add_argument("--bound", metavar="PERCENT", type=float, help="end with code 1 if the total is more than that above the file's")
    return p.parse_args()


def count(a, lines, scratch):
    """Instructions by group, and the tokens generated."""
    text, report, profile = (os.path.join(scratch, name) for name in ["in.txt", "report.json", "callgrind.out"])
    with open(text, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}", a.sluice, "translate", text]
    command += ["--model", "inputs/en-fr-de", "--source", "eng_Latn", "--target", "fra_Latn", "--num-beams", "1", "--dtype", "f32"]
    command += ["--threads", "1", "--min-new-tokens", str(NEW_TOKENS), "--max-new-tokens", str(NEW_TOKENS)]
    command += ["--output", os.path.join(scratch, "out.h5"), "--overwrite", "--report", report]
    # Nothing may depend on the time: one segment, and no line of progress.
    command += ["--segment-seconds", "86400"]
    # Without mpirun, Open MPI would start a daemon of its own beside the program.
    environment = dict(os.environ, SLUICE_ISA="avx2", OMPI_MCA_ess_singleton_isolated="1", RUST_LOG="error")
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"bench instructions: {' '.join(command)}\n{done.stdout}{done.stderr}ended with code {done.returncode}")
    with open(report, encoding="utf-8") as file:
        return callgrind.read(profile), json.load(file)["results"]["tokens"]


def read_figures():
    if not os.path.exists(FIGURES):
        return {}
    with open(FIGURES, encoding="utf-8") as file:
        rows = [line.rsplit(maxsplit=1) for line in file if not line.startswith("#")]
    return {name: int(number) for name, number in rows}


def write_figures(found):
    with open(FIGURES, "w", encoding="utf-8") as file:
        file.write("# Instructions for a generated token, by ./x bench instructions --update\n")
        file.writelines(f"{name:26}{number:12}\n" for name, number in found.items())


def main():
    a = arguments()
    with open("inputs/demo/demo.eng", encoding="utf-8") as file:
        lines = file.read().splitlines()[:SENTENCES]
    with tempfile.TemporaryDirectory() as scratch:
        whole, tokens = count(a, lines, scratch)
        blank, _ = count(a, [""] * SENTENCES, scratch)
    found = {name: (whole[name] - blank[name]) // tokens for name in callgrind.NAMES}
    found["total"] = sum(found.values())
    before = read_figures()
    print(f"Instructions for each of {tokens} generated tokens, in thousands:\n\n| group | now | share | instructions.txt | change |\n|---|---|---|---|---|")
    for name, number in found.items():
        known = before.get(name)
        change = f"{100 * (number - known) / known:+.1f} %" if known else "-"
        then = f"{known / 1000:.1f}" if known is not None else "-"
        print(f"| {name} | {number / 1000:.1f} | {100 * number / found['total']:.1f} % | {then} | {change} |")
    if a.update:
        write_figures(found)
    above = 100 * (found["total"] / before.get("total", found["total"]) - 1)
    if a.bound is not None and above > a.bound:
        sys.exit(f"bench instructions: {above:.1f} % more than benches/instructions.txt, at most {a.bound:g} % were allowed")


main()
