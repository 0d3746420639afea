"""Times Sluice and its peers on the same sentences and prints tables. benches/translate.sh starts it.

Every sentence gets exactly 32 new tokens by greedy search. One round runs every contender once, each in a process of its own; a
ratio is that of two speeds of the same round. Loading is counted on no side; transformers and CTranslate2 are warmed up by a batch,
Sluice is not. The peak is measured at the start of each round, on registers alone; the share of it counts only the arithmetic that
the model needs (flops.py).

contenders:
  sluice        the checkpoint, on each of --ranks
  transformers  the checkpoint, at each of --batches (f32 and bf16)
  dense         Sluice on a model without experts of equal FLOPs, with as many sentences in flight
  ctranslate2   CTranslate2 on the same, with 2 x 1 and 1 x 2 inter x intra threads and its fastest batches (f32 and int8)
  skewed        Sluice on a checkpoint of 64 experts, few of which get most tokens

A round of everything at 512 sentences takes about 7 minutes, 9 with int8. For a first look: --sentences 64 --pairs 1
"""

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial

import engines
import report
from flops import flops, read_config

# Room for the 512 sentences that `--batch-tokens auto` takes on for 32 experts of which a token has 2; for a dense model it takes fewer.
TWIN_TOKENS = 32768
CONTENDERS = ["transformers", "sluice", "dense", "ctranslate2", "skewed"]


@dataclass
class Contender:
    """Someone who translates: `run()` does it once; `flops` is the arithmetic of a generated token."""

    dtype: str
    kind: str
    name: str
    run: object
    flops: float
    runs: list = field(default_factory=list)


def words(known=None):
    def parse(text):
        found = text.split(",")
        wrong = [word for word in found if known and word not in known]
        if wrong:
            raise argparse.ArgumentTypeError(f"found {', '.join(wrong)}, expected some of {','.join(known)}")
        return found

    return parse


def whole_numbers(text):
    numbers = [int(n) for n in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"found {min(numbers)}, expected numbers above 0")
    return numbers


def shapes(text):
    return [tuple(whole_numbers(shape.replace("x", ","))) for shape in text.split(",")]


def arguments():
    p = argparse.ArgumentParser(prog="./x bench translate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["python", "reference", "sluice", "ceiling", "checkpoint", "dense", "ctranslate2", "skewed"]:
        p.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    p.add_argument("--pairs", metavar="N", type=int, default=5, help="rounds (default 5)")
    p.add_argument("--sentences", metavar="N,...", type=whole_numbers, default=[512], help="corpora: 64 sentences, repeated to so many (default 512)")
    p.add_argument("--dtypes", metavar="TYPE,...", type=words(["f32", "bf16", "int8"]), default=["f32", "bf16"], help="precisions (default f32,bf16)")
    p.add_argument("--contenders", metavar="NAME,...", type=words(CONTENDERS), default=CONTENDERS, help=f"who runs (default {','.join(CONTENDERS)})")
    p.add_argument("--batches", metavar="N,...", type=whole_numbers, default=[64, 128, 256, 512], help="transformers' batches (default 64,128,256,512)")
    p.add_argument("--ranks", metavar="RxT,...", type=shapes, default=[(1, 2), (2, 1), (4, 1)], help="Sluice's ranks x threads (default 1x2,2x1,4x1)")
    p.add_argument("--batch-tokens", metavar="N", type=int, help="Sluice's --batch-tokens (default: its own)")
    p.add_argument("--needs", action="store_true", help=argparse.SUPPRESS)
    return p.parse_args()


def contenders(a, count, scratch):
    """All that run at `count` sentences, in the order of a round."""
    corpora, arithmetic = {}, {}
    for name in ["checkpoint", "dense", "skewed"]:
        folder = getattr(a, name)
        if folder:
            corpora[name] = corpus = engines.Corpus(folder, count, scratch)
            config = read_config(folder)
            arithmetic[name] = sum(flops(config, n, engines.NEW_TOKENS) for n in corpus.lengths) / (count * engines.NEW_TOKENS)
    found = []

    def add(kind, name, dtype, engine, on, *shape):
        found.append(Contender(dtype, kind, name, partial(engine, a, corpora[on], dtype, *shape), arithmetic[on]))

    for dtype in a.dtypes:
        if "transformers" in a.contenders and dtype != "int8":
            for batch in sorted({min(batch, count) for batch in a.batches}):
                add("transformers", f"transformers, batch {batch}", dtype, engines.transformers, "checkpoint", batch)
        if "sluice" in a.contenders:
            for shape in a.ranks:
                add("sluice", "Sluice, %d x %d" % shape, dtype, engines.sluice, "checkpoint", *shape)
        if "dense" in a.contenders:
            add("dense", "Sluice, 1 x 2, dense twin", dtype, engines.sluice, "dense", 1, 2, TWIN_TOKENS)
        if "ctranslate2" in a.contenders and dtype in engines.CTRANSLATE2_TYPES:
            for shape in engines.CTRANSLATE2_SETTINGS:
                add("ctranslate2", "CTranslate2, %d x %d, batch %d, dense twin" % shape, dtype, engines.ctranslate2, "dense", *shape)
        if "skewed" in a.contenders:
            for shape in a.ranks:
                add("skewed", "Sluice, %d x %d, skewed" % shape, dtype, engines.sluice, "skewed", *shape)
    return found


def run_rounds(a, count, scratch):
    """Runs all rounds; what was timed until an engine failed is still reported. Returns whether none did."""
    who, rounds = contenders(a, count, scratch), []
    try:
        for number in range(a.pairs):
            rounds.append(report.Round(load=os.getloadavg()[0], peaks=engines.ceilings(a)))
            for contender in who:
                progress = f"{count} sentences, round {number + 1} of {a.pairs}: {contender.dtype} {contender.name}"
                print(f"\r{progress:80}", end="", file=sys.stderr, flush=True)
                contender.runs.append(contender.run())
        failure = None
    except (engines.Failed, KeyboardInterrupt) as error:
        failure = error
    print(f"\r{'':80}\r", end="", file=sys.stderr, flush=True)
    report.print_all(count, [c for c in who if c.runs], rounds)
    if failure:
        print(f"bench translate: {str(failure) or 'interrupted'}", file=sys.stderr)
    if isinstance(failure, KeyboardInterrupt):
        raise failure
    return failure is None


def main():
    a = arguments()
    if a.needs:
        return print(" ".join(a.contenders))
    report.print_machine()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            fine = [run_rounds(a, count, scratch) for count in a.sentences]
        except KeyboardInterrupt:
            sys.exit(130)
        if not all(fine):
            sys.exit(1)


main()
