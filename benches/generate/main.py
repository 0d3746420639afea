"""Times greedy generation by Sluice and its peers from the same prompts and prints a table. benches/generate.sh starts it.

64 prompts (--prompts) of 32 tokens (--prompt-tokens), all in flight at once where the engine allows it, each continued by exactly 128
tokens (--new-tokens). Tokens are those that are generated; reading the prompts is counted in. `came out` says how many outputs are
Sluice's, and how many tokens come before the first difference, on average. One round runs every contender once, each in a process of
its own; loading is counted on no side.

Then, how much of the memory's read bandwidth Sluice's decoding makes: what a step of all outputs reads (weights but for the embedding,
keys and values), over the time of a step, which is that of the whole less that of a run of one token each.
"""

import json
import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "decoder"))
import contenders

BYTES = {"f32": 4, "bf16": 2}


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


def bytes_read(config, dtype, prompts, before, new):
    """What decoding tokens 2 to `new` of all outputs behind prompts of `before` tokens reads. Every expert counts in every step: with 64
    outputs of 4 experts each, of 48, hardly one is left out."""
    d, layers, vocabulary = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
    experts = config["num_experts"] * 3 * d * config["intermediate_size"]
    weights = layers * (experts + 4 * d * d) + vocabulary * d
    rows = sum(before + token for token in range(1, new)) * prompts
    return ((new - 1) * weights + rows * layers * 2 * d) * BYTES[dtype]


def reading(a, config, run):
    """Lines on how fast decoding reads; `run(dtype, tokens)` gives seconds."""
    for dtype in a.dtypes.split(","):
        shares = []
        for _ in range(a.rounds):
            most = contenders.bandwidth(a)
            seconds = run(dtype, a.new_tokens) - run(dtype, 1)
            rate = bytes_read(config, dtype, a.prompts, a.prompt_tokens, a.new_tokens) / seconds
            shares.append((rate / most, rate / 1e9, most / 1e9))
        share, rate, most = sorted(shares)[len(shares) // 2]
        print(f"{dtype}: decoding reads {rate:.1f} GB/s, {100 * share:.0f} % of the {most:.1f} GB/s that {a.threads} threads read", end=" ")
        print(f"({100 * min(shares)[0]:.0f}..{100 * max(shares)[0]:.0f} %, {a.rounds} rounds)", flush=True)


def main():
    p = contenders.arguments("generate", __doc__)
    p.add_argument("--prompts", metavar="N", type=int, default=64, help="prompts, at most 64 (default 64)")
    p.add_argument("--prompt-tokens", metavar="N", type=int, default=32, help="tokens of a prompt, at most 128 (default 32)")
    p.add_argument("--new-tokens", metavar="N", type=int, default=128, help="tokens of an output (default 128)")
    p.set_defaults(batches="64")
    a = p.parse_args()
    if not 1 <= a.prompts <= 64 or not 1 <= a.prompt_tokens <= 128 or a.new_tokens < 2:
        p.error("--prompts is 1 to 64, --prompt-tokens 1 to 128, --new-tokens 2 at least")
    if a.threads not in (1, 2):
        p.error("--threads is 1 or 2: the memory's speed is measured for those")
    with open(os.path.join(a.checkpoint, "bench_ids.json"), encoding="utf-8") as file:
        data = json.load(file)
    data["ids"] = [ids[: a.prompt_tokens] for ids in data["ids"][: a.prompts]]
    with tempfile.TemporaryDirectory() as scratch:
        ids, prompts = os.path.join(scratch, "ids.json"), os.path.join(scratch, "prompts.jsonl")
        with open(ids, "w", encoding="utf-8") as file:
            json.dump(data, file)
        with open(prompts, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"prompt_token_ids": prompt}) + "\n" for prompt in data["ids"])

        def ours(dtype, threads, new=a.new_tokens):
            out = os.path.join(scratch, "out.h5")

            def result(results):
                assert results["tokens"] == len(data["ids"]) * new, f"Sluice generated {results['tokens']} tokens"
                return results["tokens"], outputs(out)

            command = ["generate", prompts, "--model", a.checkpoint, "--max-new-tokens", new, "--min-new-tokens", new]
            return contenders.sluice(a, command, out, dtype, threads, result)

        contenders.compare(
            f"{a.prompts} prompts of {a.prompt_tokens} tokens, {a.new_tokens} tokens each",
            a,
            ours,
            lambda dtype: contenders.peers(a, a.checkpoint, ids, dtype, ["generate", a.new_tokens]),
            same,
        )
        with open(os.path.join(a.checkpoint, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        # A step in which many experts have no row reads less than is counted.
        if a.prompts * config["num_experts_per_tok"] < 4 * config["num_experts"]:
            print("\nToo few prompts to say how fast decoding reads.")
            return
        print()
        reading(a, config, lambda dtype, new: len(data["ids"]) * new / ours(dtype, a.threads, new)[0])


main()
