"""Writes an OLMoE checkpoint as llama.cpp reads it, without a tokenizer: to_gguf.py CHECKPOINT OUT.gguf f32|bf16

Matrices take the precision that is asked for; norms and routers stay float32, as llama.cpp's own conversion has it."""

import json
import os
import sys

import gguf
import numpy
from gguf.constants import GGMLQuantizationType as Type
from safetensors import safe_open

folder, out, dtype = sys.argv[1:]
with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
    config = json.load(file)
files = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
opened = [safe_open(os.path.join(folder, name), framework="numpy") for name in files]
where = {name: file for file in opened for name in file.keys()}

w = gguf.GGUFWriter(out, "olmoe")
w.add_tokenizer_model("none")
w.add_vocab_size(config["vocab_size"])
w.add_block_count(config["num_hidden_layers"])
w.add_context_length(config["max_position_embeddings"])
w.add_embedding_length(config["hidden_size"])
w.add_feed_forward_length(config["intermediate_size"])
w.add_head_count(config["num_attention_heads"])
w.add_head_count_kv(config["num_key_value_heads"])
w.add_layer_norm_rms_eps(config["rms_norm_eps"])
w.add_rope_freq_base(config["rope_theta"])
w.add_expert_count(config["num_experts"])
w.add_expert_used_count(config["num_experts_per_tok"])


def add(name, data, matrix):
    if matrix and dtype == "bf16":
        w.add_tensor(name, gguf.quants.quantize(data, Type.BF16), raw_dtype=Type.BF16)
    else:
        w.add_tensor(name, data)


def tensor(name):
    return where[name].get_tensor(name).astype(numpy.float32)


add("token_embd.weight", tensor("model.embed_tokens.weight"), True)
add("output.weight", tensor("lm_head.weight"), True)
add("output_norm.weight", tensor("model.norm.weight"), False)
for layer in range(config["num_hidden_layers"]):
    theirs, ours = f"blk.{layer}", f"model.layers.{layer}"
    for to, of in [("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("output", "o_proj")]:
        add(f"{theirs}.attn_{to}.weight", tensor(f"{ours}.self_attn.{of}.weight"), True)
    for to, of in [
        ("attn_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("ffn_gate_inp", "mlp.gate"),
    ]:
        add(f"{theirs}.{to}.weight", tensor(f"{ours}.{of}.weight"), False)
    for part in ["gate", "up", "down"]:
        experts = [tensor(f"{ours}.mlp.experts.{i}.{part}_proj.weight") for i in range(config["num_experts"])]
        add(f"{theirs}.ffn_{part}_exps.weight", numpy.stack(experts), True)
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
