"""Times greedy generation by Sluice and its peers from the same prompts and prints a table. benches/generate.sh starts it.

64 prompts (--prompts) of 32 tokens (--prompt-tokens), all in flight at once where the engine allows it, each continued by exactly 128
tokens (--new-tokens). Tokens are those that are generated; reading the prompts is counted in. `came out` says how many outputs are
Sluice's, and how many tokens come before the first difference, on average. One round runs every contender once, each in a process of
its own; loading is counted on no side.
"""

import json
import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "decoder"))
import contenders


def outputs(out):
    """The tokens of a results file."""
    import h5py

    with h5py.File(out) as file:
        ids, offsets = file["tokens/ids"][:], file["tokens/offsets"][:]
    return [ids[first:end].tolist() for first, end in zip(offsets, offsets[1:])]


def same(ours, theirs):
    """How far outputs agree, in words."""
    equal = [next((i for i, (x, y) in enumerate(zip(o, t)) if x != y), len(o)) for o, t in zip(ours, theirs)]
    return f"{sum(o == t for o, t in zip(ours, theirs))} equal, {sum(equal) / len(equal):.0f} tokens"


def main():
    p = contenders.arguments("generate", __doc__)
    p.add_argument("--prompts", metavar="N", type=int, default=64, help="prompts, at most 64 (default 64)")
    p.add_argument("--prompt-tokens", metavar="N", type=int, default=32, help="tokens of a prompt, at most 128 (default 32)")
    p.add_argument("--new-tokens", metavar="N", type=int, default=128, help="tokens of an output (default 128)")
    p.set_defaults(batches="64")
    a = p.parse_args()
    with open(os.path.join(a.checkpoint, "bench_ids.json"), encoding="utf-8") as file:
        data = json.load(file)
    data["ids"] = [ids[: a.prompt_tokens] for ids in data["ids"][: a.prompts]]
    with tempfile.TemporaryDirectory() as scratch:
        ids, prompts = os.path.join(scratch, "ids.json"), os.path.join(scratch, "prompts.jsonl")
        with open(ids, "w", encoding="utf-8") as file:
            json.dump(data, file)
        with open(prompts, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"prompt_token_ids": prompt}) + "\n" for prompt in data["ids"])
        tokens = len(data["ids"]) * a.new_tokens

        def ours(dtype, threads):
            out = os.path.join(scratch, "out.h5")

            def result(results):
                assert results["tokens"] == tokens, f"Sluice generated {results['tokens']} tokens, not {tokens}"
                return tokens, outputs(out)

            command = ["generate", prompts, "--model", a.checkpoint, "--max-new-tokens", a.new_tokens, "--min-new-tokens", a.new_tokens]
            return contenders.sluice(a, command, out, dtype, threads, result)

        contenders.compare(
            f"{a.prompts} prompts of {a.prompt_tokens} tokens, {a.new_tokens} tokens each",
            a,
            ours,
            lambda dtype: contenders.peers(a, a.checkpoint, ids, dtype, ["generate", a.new_tokens]),
            same,
        )


main()
