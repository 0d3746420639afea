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
    """The first `count` of a checkpoint's texts of 128 tokens joined by `join`, over and over, in a folder."""

    def __init__(self, checkpoint, join, count, scratch):
        from tokenizers import Tokenizer

        longest = 128 * join
        self.name, self.count = f"{count} x {longest} tokens", count
        self.text, self.ids = os.path.join(scratch, f"{join}.txt"), os.path.join(scratch, f"{join}.json")
        with open(os.path.join(checkpoint, "bench.txt"), encoding="utf-8") as file:
            lines = file.read().splitlines()
        with open(os.path.join(checkpoint, "bench_ids.json"), encoding="utf-8") as file:
            pad = json.load(file)["pad"]
        tokenizer = Tokenizer.from_file(os.path.join(checkpoint, "tokenizer.json"))
        texts = [" ".join(lines[i : i + join]).split(" ") for i in range(0, len(lines) - join + 1, join)]
        for words in texts:
            # Joined, lines may come to some tokens more.
            while len(tokenizer.encode(" ".join(words)).ids) > longest:
                words.pop()
        chosen = [" ".join(texts[i % len(texts)]) for i in range(count)]
        ids = [tokenizer.encode(text).ids for text in chosen]
        self.tokens = sum(map(len, ids))
        with open(self.ids, "w", encoding="utf-8") as file:
            json.dump({"ids": ids, "pad": pad}, file)
        with open(self.text, "w", encoding="utf-8") as file:
            file.writelines(f"{text}\n" for text in chosen)


def sluice(a, corpus, dtype, threads):
    def result(results):
        scored = results["tokens"]
        assert scored + corpus.count == corpus.tokens, f"Sluice scored {scored} tokens of {corpus.tokens}"
        return corpus.tokens, -math.log(results["metrics"]["perplexity"])

    command = ["score", corpus.text, "--model", a.checkpoint]
    return contenders.sluice(a, command, f"{corpus.text}.h5", dtype, threads, result)


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
                lambda _, theirs: f"{theirs:.4f}",
            )


main()
