"""Scores or continues sequences of token ids with llama.cpp: run_llama.py GGUF IDS.json THREADS score|generate [NEW TOKENS]

Prints one JSON line: tokens, seconds, and what came out (the mean log-probability of a scored token, or the ids). Scoring has as many sequences in
flight as fit a batch of 2,048 tokens; generation, greedy, has all of them. Picking from logits is done by numpy and counted in."""

import ctypes
import json
import sys
import time

import llama_cpp
import numpy

path, ids, threads, job = sys.argv[1], json.load(open(sys.argv[2], encoding="utf-8"))["ids"], int(sys.argv[3]), sys.argv[4]
new = int(sys.argv[5]) if job == "generate" else 0
longest, batch_tokens = max(map(len, ids)), 2048
side_by_side = len(ids) if new else max(1, batch_tokens // longest)

silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
params = llama_cpp.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch = side_by_side * (longest + new), batch_tokens, 512
params.n_threads = params.n_threads_batch = threads
params.n_seq_max = side_by_side
context = llama_cpp.llama_init_from_model(model, params)
vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
batch = llama_cpp.llama_batch_init(batch_tokens, 0, 1)


def clear():
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    batch.n_tokens = 0


def add(token, position, number, wanted):
    at = batch.n_tokens
    batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
    batch.n_seq_id[at], batch.seq_id[at][0] = 1, number
    batch.n_tokens = at + 1


def decode(wanted):
    """Runs the batch; logits `[wanted, vocabulary]`."""
    if llama_cpp.llama_decode(context, batch):
        sys.exit("llama_decode failed")
    batch.n_tokens = 0
    return numpy.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(wanted, vocabulary))


def score(sequences):
    clear()
    for number, sequence in enumerate(sequences):
        for position, token in enumerate(sequence):
            add(token, position, number, True)
    logits = decode(batch.n_tokens)
    total, first = 0.0, 0
    for sequence in sequences:
        rows = logits[first : first + len(sequence) - 1]
        largest = rows.max(axis=1)
        sums = numpy.log(numpy.exp(rows - largest[:, None]).sum(axis=1)) + largest
        total += float((rows[numpy.arange(len(rows)), sequence[1:]] - sums).sum())
        first += len(sequence)
    return total


def generate(prompts, new):
    clear()
    last, waiting = {}, []
    for number, prompt in enumerate(prompts):
        if batch.n_tokens + len(prompt) > batch_tokens:
            last.update(zip(waiting, decode(len(waiting)).argmax(axis=1)))
            waiting = []
        for position, token in enumerate(prompt):
            add(token, position, number, position + 1 == len(prompt))
        waiting.append(number)
    last.update(zip(waiting, decode(len(waiting)).argmax(axis=1)))
    outputs = [[int(last[number])] for number in range(len(prompts))]
    for step in range(new - 1):
        for number, prompt in enumerate(prompts):
            add(outputs[number][-1], len(prompt) + step, number, True)
        for output, token in zip(outputs, decode(len(prompts)).argmax(axis=1)):
            output.append(int(token))
    return outputs


if job == "score":
    parts = [ids[i : i + side_by_side] for i in range(0, len(ids), side_by_side)]
    score(parts[0])
    started = time.time()
    tokens = sum(map(len, ids))
    came_out = sum(score(part) for part in parts) / (tokens - len(ids))
else:
    generate(ids, 2)
    started = time.time()
    came_out, tokens = generate(ids, new), new * len(ids)
print(json.dumps({"tokens": tokens, "seconds": time.time() - started, "result": came_out}))
