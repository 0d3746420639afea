"""Translates the sentences of a checkpoint's bench_ids.json once by CTranslate2 and prints a line of JSON with what it took.

ctranslate2_once.py MODEL SENTENCES INTER INTRA TYPE BATCH NEW: SENTENCES is the checkpoint's folder, NEW the tokens that each sentence
gets. Loading is not counted, and a batch for each worker goes first to warm up.
"""

import json
import os
import resource
import sys
import time

import ctranslate2
from tokenizers import Tokenizer

model, folder = sys.argv[1:3]
inter, intra, kind, batch, new = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], int(sys.argv[6]), int(sys.argv[7])
tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
with open(os.path.join(folder, "bench_ids.json"), encoding="utf-8") as file:
    data = json.load(file)
sentences = [[tokenizer.id_to_token(i) for i in ids] for ids in data["ids"]]
language = [tokenizer.id_to_token(data["forced_bos"])]
translator = ctranslate2.Translator(model, device="cpu", inter_threads=inter, intra_threads=intra, compute_type=kind)


def translate(some):
    # The language is among the tokens counted, here as in the other engines.
    found = translator.translate_batch(
        some,
        target_prefix=[language] * len(some),
        beam_size=1,
        min_decoding_length=new,
        max_decoding_length=new,
        max_batch_size=batch,
    )
    return sum(len(result.hypotheses[0]) for result in found)


def cpu_seconds():
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])


translate(sentences[: batch * inter])
cpu, start = cpu_seconds(), time.time()
tokens = translate(sentences)
wall, cpu = time.time() - start, cpu_seconds() - cpu
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"tokens": tokens, "rate": tokens / wall, "per_cpu": tokens / cpu, "memory": memory}))
