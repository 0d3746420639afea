"""Scores or continues sequences of token ids with vLLM on CPUs: run_vllm.py CHECKPOINT IDS.json THREADS DTYPE score|generate
[NEW TOKENS]

Prints one JSON line: tokens, seconds, and what came out (the mean log-probability of a scored token, or the ids)."""

import json
import os
import sys
import time

path, data, threads, dtype, job = sys.argv[1], json.load(open(sys.argv[2], encoding="utf-8")), *sys.argv[3:6]
ids = data["ids"]
new = int(sys.argv[6]) if job == "generate" else 1
os.environ.update(
    OMP_NUM_THREADS=threads,
    VLLM_CPU_OMP_THREADS_BIND=f"0-{int(threads) - 1}" if threads != "1" else "0",
    VLLM_CPU_KVCACHE_SPACE="2",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
)

from vllm import LLM, SamplingParams, TokensPrompt

longest = max(map(len, ids)) + new
engine = LLM(
    model=path,
    dtype={"f32": "float32", "bf16": "bfloat16"}[dtype],
    enforce_eager=True,
    enable_prefix_caching=False,
    max_model_len=min(longest, 1024),
    max_num_seqs=len(ids),
    max_num_batched_tokens=2048,
)


def run(sequences, new):
    """What came out, for a job of `new` tokens; where it scores, one token more than was asked for is generated."""
    # The model's positions have an end, and a token is always generated: the last one of the longest texts is left out.
    prompts = [TokensPrompt(prompt_token_ids=s[: longest - new] if job == "generate" else s[:1023]) for s in sequences]
    asked = dict(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
    if job == "score":
        asked["prompt_logprobs"] = 0
    done = engine.generate(prompts, SamplingParams(**asked), use_tqdm=False)
    if job == "generate":
        return [list(d.outputs[0].token_ids) for d in done]
    found = [p[t].logprob for d in done for p, t in zip(d.prompt_logprobs[1:], d.prompt_token_ids[1:])]
    return sum(found) / len(found)


run(ids[:8], 1)
started = time.time()
came_out = run(ids, new)
tokens = sum(map(len, came_out)) if job == "generate" else sum(min(len(s), 1023) for s in ids)
print(json.dumps({"tokens": tokens, "seconds": time.time() - started, "result": came_out}))
