"""Times scoring by Sluice and its peers on the same texts and prints a table. benches/score.sh starts it.

Texts are 64 of 128 tokens, and 16 of 1,024. Tokens are those that are read: the first of a text has no score. `came out` is the mean
log-probability of a token. One round runs every contender once, each in a process of its own; loading is counted on no side.
"""

import json
import math
import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "decoder"))
import contenders


class Corpus:
    """A checkpoint's 64 texts of 128 tokens, joined by `join` and repeated to `count`, in a folder."""

    def __init__(self, checkpoint, join, count, scratch):
        self.name = f"{count} x {128 * join} tokens"
        self.folder = os.path.join(scratch, f"{count}-{join}")
        self.text, self.ids = os.path.join(self.folder, "bench.txt"), os.path.join(self.folder, "bench_ids.json")
        os.makedirs(self.folder)
        with open(os.path.join(checkpoint, "bench.txt"), encoding="utf-8") as file:
            lines = file.read().splitlines()
        with open(os.path.join(checkpoint, "bench_ids.json"), encoding="utf-8") as file:
            data = json.load(file)
        pieces = [range(i * join, (i + 1) * join) for i in range(len(lines) // join)]
        chosen = [pieces[i % len(pieces)] for i in range(count)]
        data["ids"] = [[token for i in piece for token in data["ids"][i]] for piece in chosen]
        self.tokens, self.count = sum(map(len, data["ids"])), count
        with open(self.ids, "w", encoding="utf-8") as file:
            json.dump(data, file)
        with open(self.text, "w", encoding="utf-8") as file:
            file.writelines(" ".join(lines[i] for i in piece) + "\n" for piece in chosen)


def sluice(a, corpus, dtype, threads):
    def result(results):
        scored = results["tokens"]
        assert scored + corpus.count == corpus.tokens, f"Sluice scored {scored} tokens of {corpus.tokens}"
        return corpus.tokens, -scored * math.log(results["metrics"]["perplexity"])

    command = ["score", corpus.text, "--model", a.checkpoint]
    return contenders.sluice(a, command, os.path.join(corpus.folder, "out.h5"), dtype, threads, result)


def main():
    a = contenders.arguments("score", __doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for join, count in [(1, 64), (8, 16)]:
            corpus = Corpus(a.checkpoint, join, count, scratch)
            contenders.compare(
                corpus.name,
                a,
                lambda dtype, threads: sluice(a, corpus, dtype, threads),
                lambda dtype: contenders.peers(a, a.checkpoint, corpus.ids, dtype, ["score"]),
                lambda _, theirs: f"{theirs / (corpus.tokens - corpus.count):.4f}",
            )


main()
