"""Scores sequences of token ids with llama.cpp, as many in flight as fit its batch: llama_once.py GGUF IDS.json THREADS

Prints one JSON line: tokens, seconds, the sum of log-probabilities (float32 logits, log-softmax by numpy counted in)."""

import json
import sys
import time

import llama_cpp
import numpy

path, ids, threads = sys.argv[1], json.load(open(sys.argv[2], encoding="utf-8"))["ids"], int(sys.argv[3])
longest, batch_tokens = max(map(len, ids)), 2048
side_by_side = max(1, batch_tokens // longest)

llama_cpp.llama_backend_init()
model = llama_cpp.llama_load_model_from_file(path.encode(), llama_cpp.llama_model_default_params())
params = llama_cpp.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch = side_by_side * longest, batch_tokens, 512
params.n_threads = params.n_threads_batch = threads
params.n_seq_max = side_by_side
context = llama_cpp.llama_new_context_with_model(model, params)
vocabulary = llama_cpp.llama_n_vocab(model)
batch = llama_cpp.llama_batch_init(batch_tokens, 0, side_by_side)


def score(sequences):
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    at = 0
    for number, sequence in enumerate(sequences):
        for position, token in enumerate(sequence):
            batch.token[at], batch.pos[at] = token, position
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, number
            batch.logits[at] = True
            at += 1
    batch.n_tokens = at
    if llama_cpp.llama_decode(context, batch):
        sys.exit("llama_decode failed")
    logits = numpy.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(at, vocabulary))
    total, first = 0.0, 0
    for sequence in sequences:
        rows = logits[first : first + len(sequence) - 1]
        largest = rows.max(axis=1)
        sums = numpy.log(numpy.exp(rows - largest[:, None]).sum(axis=1)) + largest
        total += float((rows[numpy.arange(len(rows)), sequence[1:]] - sums).sum())
        first += len(sequence)
    return total


parts = [ids[i : i + side_by_side] for i in range(0, len(ids), side_by_side)]
score(parts[0])
started = time.time()
total = sum(score(part) for part in parts)
print(json.dumps({"tokens": sum(map(len, ids)), "seconds": time.time() - started, "logprob": total}))
