"""Makes dense twins of an NLLB-MoE checkpoint: models of the same sizes without sparse layers, with a feed-forward width that takes as
much arithmetic for a token as the experts do. twins.py CHECKPOINT OURS THEIRS writes

  OURS     as an NLLB-MoE checkpoint without sparse layers, for Sluice
  THEIRS   as an M2M100 in CTranslate2's format

Weights are random, the tokenizer is the checkpoint's.
"""

import os
import shutil
import sys

import ctranslate2
import torch
import transformers

from flops import TOP_K, is_sparse, read_config

TOKENIZER = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "bench.txt", "bench_ids.json"]
SIZES = ["vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"]
SIZES += ["max_position_embeddings", "scale_embedding", "activation_function", "decoder_start_token_id"]
SIZES += ["bos_token_id", "eos_token_id", "pad_token_id"]


def dense_width(config, stack):
    """The mean over a stack's layers of the feed-forward widths that a token passes through."""
    layers = config[f"{stack}_layers"]
    active = sum(TOP_K if is_sparse(config, stack, i) else 1 for i in range(layers))
    return config[f"{stack}_ffn_dim"] * active // layers


@torch.no_grad()
def initialise(model, width):
    torch.manual_seed(11)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            p.fill_(float("norm" in name and name.endswith("weight")))
        else:
            p.normal_(0, width**-0.5 if "shared" in name or "embed" in name else 1.6 * p.shape[-1] ** -0.5)


def save(model, checkpoint, folder):
    model.save_pretrained(folder)
    for name in filter(lambda name: os.path.exists(os.path.join(checkpoint, name)), TOKENIZER):
        shutil.copy(os.path.join(checkpoint, name), folder)


def main():
    checkpoint, ours, theirs = sys.argv[1:]
    config = read_config(checkpoint)
    sizes = {key: config[key] for key in SIZES}
    for stack in ["encoder", "decoder"]:
        sizes[f"{stack}_ffn_dim"] = dense_width(config, stack)
    dense = transformers.NllbMoeConfig(**sizes, encoder_sparse_step=0, decoder_sparse_step=0, num_experts=0, max_length=200)
    model = transformers.NllbMoeForConditionalGeneration(dense).eval()
    initialise(model, config["d_model"])
    save(model, checkpoint, ours)
    model = transformers.M2M100ForConditionalGeneration(transformers.M2M100Config(**sizes, max_length=200)).eval()
    initialise(model, config["d_model"])
    whole, unfinished = theirs + ".whole", theirs + ".unfinished"
    save(model, checkpoint, whole)
    ctranslate2.converters.TransformersConverter(whole).convert(unfinished, force=True)
    shutil.rmtree(whole)
    # Whole or not at all: an interrupted conversion would count as made.
    shutil.rmtree(theirs, ignore_errors=True)
    os.rename(unfinished, theirs)


main()
