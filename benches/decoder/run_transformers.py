"""Scores or continues sequences of token ids with transformers: run_transformers.py CHECKPOINT IDS.json THREADS DTYPE BATCH
score|generate [NEW TOKENS]

Prints one JSON line: tokens, seconds, and what came out (the mean log-probability of a scored token, or the ids)."""

import json
import os
import sys
import time

path, data, threads, dtype, batch, job = sys.argv[1], json.load(open(sys.argv[2], encoding="utf-8")), *sys.argv[3:7]
new = int(sys.argv[7]) if job == "generate" else 0
os.environ["OMP_NUM_THREADS"] = threads

import torch
import transformers

torch.set_num_threads(int(threads))
transformers.logging.set_verbosity_error()
precision = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=precision).eval()
ids, pad = data["ids"], data["pad"]
batches = [ids[i : i + int(batch)] for i in range(0, len(ids), int(batch))]


def score(sequences):
    longest = max(map(len, sequences))
    rows = torch.tensor([s + [pad] * (longest - len(s)) for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
    logits = model(input_ids=rows, attention_mask=mask, use_cache=False).logits[:, :-1]
    found = torch.log_softmax(logits.float(), -1).gather(-1, rows[:, 1:, None])[..., 0]
    return float((found * mask[:, 1:]).sum())


def generate(sequences, new):
    longest = max(map(len, sequences))
    rows = torch.tensor([[pad] * (longest - len(s)) + s for s in sequences])
    mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in sequences])
    out = model.generate(input_ids=rows, attention_mask=mask, do_sample=False, min_new_tokens=new, max_new_tokens=new, pad_token_id=pad)
    return out[:, longest:].tolist()


with torch.inference_mode():
    score(batches[0]) if job == "score" else generate(batches[0], 2)
    started = time.time()
    if job == "score":
        tokens = sum(map(len, ids))
        came_out = sum(score(b) for b in batches) / (tokens - len(ids))
    else:
        came_out = [output for b in batches for output in generate(b, new)]
        tokens = sum(map(len, came_out))
print(json.dumps({"tokens": tokens, "seconds": time.time() - started, "result": came_out}))
