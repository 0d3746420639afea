"""The arithmetic that a translation takes, from config.json and the lengths alone: what any program must compute for it."""

import json
import os

# Experts that a token of an NLLB-MoE goes to.
TOP_K = 2


def read_config(checkpoint):
    with open(os.path.join(checkpoint, "config.json"), encoding="utf-8") as file:
        return json.load(file)


def is_sparse(config, stack, layer):
    step = config.get(f"{stack}_sparse_step", 0)
    return step > 0 and (layer + 1) % step == 0


def feed_forward(config, stack):
    """Multiplications and additions of a token in all feed-forward layers of a stack, routers included."""
    d, ffn = config["d_model"], config[f"{stack}_ffn_dim"]
    dense, sparse = 4 * d * ffn, TOP_K * 4 * d * ffn + 2 * d * config["num_experts"]
    return sum(sparse if is_sparse(config, stack, i) else dense for i in range(config[f"{stack}_layers"]))


def flops(config, source, new):
    """Of one sentence of `source` tokens and a translation of `new`, of which the first, the language, is given."""
    d, encoder, decoder = config["d_model"], config["encoder_layers"], config["decoder_layers"]
    square = 2 * d * d
    reading = source * (encoder * 4 * square + feed_forward(config, "encoder"))
    # Scores and weighted sums: 2 d each for a query and a key, in all heads together.
    reading += encoder * source * source * 4 * d
    # Keys and values of the source, once for each decoder layer.
    reading += decoder * source * 2 * square
    # Self-attention has four projections, cross-attention those of queries and outputs.
    writing = new * (decoder * 6 * square + feed_forward(config, "decoder"))
    writing += decoder * 4 * d * (new * source + new * (new + 1) // 2)
    return reading + writing + (new - 1) * 2 * d * config["vocab_size"]
