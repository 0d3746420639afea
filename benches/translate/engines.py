"""Who translates: each function runs one engine once, in a process of its own, and returns what it took as a dict of `rate` (generated
tokens a second, loading not counted), `per_cpu` (the same by CPU time), `memory` (MiB at most) and perhaps `phases` (seconds)."""

import json
import os
import subprocess
import sys

NEW_TOKENS = 32
LANGUAGES = ["--source", "eng_Latn", "--target", "fra_Latn"]
CTRANSLATE2_TYPES = {"f32": "float32", "int8": "int8"}
# Its fastest of batches of 16 to 256, for one and two workers, in float32 and int8: inter threads, intra threads, batch.
CTRANSLATE2_SETTINGS = [(2, 1, 64), (2, 1, 128), (1, 2, 256)]


class Failed(Exception):
    """An engine ended with an error; the message holds what it said."""


def output_of(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(command)}\n{done.stdout}{done.stderr}ended with code {done.returncode}")
    return done.stdout


def expect_tokens(found, count, engine):
    if found != count * NEW_TOKENS:
        raise Failed(f"{engine}: {found} tokens, expected {count} x {NEW_TOKENS}")


class Corpus:
    """A checkpoint's 64 sentences repeated to `count`, in a folder of links to the checkpoint with ids and text of its own."""

    def __init__(self, checkpoint, count, scratch):
        self.count = count
        self.folder = os.path.join(scratch, f"{os.path.basename(checkpoint)}-{count}")
        self.text = os.path.join(self.folder, "bench.txt")
        os.makedirs(self.folder)
        for name in os.listdir(checkpoint):
            if name not in ("bench.txt", "bench_ids.json"):
                os.symlink(os.path.abspath(os.path.join(checkpoint, name)), os.path.join(self.folder, name))
        with open(os.path.join(checkpoint, "bench.txt"), encoding="utf-8") as file:
            lines = file.read().splitlines()
        with open(os.path.join(checkpoint, "bench_ids.json"), encoding="utf-8") as file:
            data = json.load(file)
        data["ids"] = [data["ids"][i % len(data["ids"])] for i in range(count)]
        self.lengths = [len(ids) for ids in data["ids"]]
        with open(os.path.join(self.folder, "bench_ids.json"), "w", encoding="utf-8") as file:
            json.dump(data, file)
        with open(self.text, "w", encoding="utf-8") as file:
            file.writelines(lines[i % len(lines)] + "\n" for i in range(count))


def transformers(a, corpus, dtype, batch):
    command = [a.python, a.reference, corpus.folder, "--mode", "translate", "--batch", str(batch), "--dtype", dtype]
    command += ["--threads", "2", "--n", str(corpus.count), "--new", str(NEW_TOKENS)]
    said = json.loads(output_of(command).strip().splitlines()[-1])
    expect_tokens(said["tokens"], corpus.count, "transformers")
    return {"rate": said["tok_s"], "per_cpu": said["tok_per_cpu_s"], "memory": said["rss_mb"]}


def ctranslate2(a, corpus, dtype, inter, intra, batch):
    once = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ctranslate2_once.py")
    # Each of its workers takes whole batches, so there must be one for each.
    batch = min(batch, max(1, corpus.count // inter))
    shape = [inter, intra, CTRANSLATE2_TYPES[dtype], batch, NEW_TOKENS]
    said = json.loads(output_of([a.python, once, a.ctranslate2, corpus.folder, *map(str, shape)]).strip().splitlines()[-1])
    expect_tokens(said.pop("tokens"), corpus.count, "CTranslate2")
    return said


def sluice(a, corpus, dtype, ranks, threads, batch_tokens=None):
    report, out = os.path.join(corpus.folder, "report.json"), os.path.join(corpus.folder, "out.h5")
    command = ["mpirun", "-n", str(ranks), a.sluice, "translate", corpus.text, "--model", corpus.folder, *LANGUAGES]
    command += ["--output", out, "--overwrite", "--dtype", dtype, "--threads", str(threads), "--num-beams", "1", "--report", report]
    command += ["--min-new-tokens", str(NEW_TOKENS), "--max-new-tokens", str(NEW_TOKENS)]
    if a.batch_tokens or batch_tokens:
        command += ["--batch-tokens", str(a.batch_tokens or batch_tokens)]
    output_of(command)
    with open(report, encoding="utf-8") as file:
        r = json.load(file)["results"]
    expect_tokens(r["tokens"], corpus.count, "Sluice")
    phases = {}
    for rank in r["phases"]:
        for name, phase in rank["phases"].items():
            if name != "load":
                phases[name] = phases.get(name, 0.0) + phase["seconds"] / len(r["phases"])
    memory = sum(r["peak_memory_bytes"]) / 2**20
    return {"rate": r["tokens_per_second"], "per_cpu": r["tokens"] / sum(r["cpu_seconds"]), "memory": memory, "phases": phases}


def ceilings(a):
    """Operations a second that two threads do on registers alone, by dtype; a type that the CPU has no instruction for has none."""
    kinds = {"float32": "f32", "bfloat16": "bf16", "int8": "int8"}
    found = {}
    for line in output_of([a.ceiling, "--bench", "ceiling"]).splitlines():
        word, threads, kind, *_, rate = line.split()
        if word == "ceiling" and threads == "2" and kind in kinds and float(rate) > 0:
            found[kinds[kind]] = float(rate)
    if "f32" not in found:
        sys.exit(f"bench translate: {a.ceiling} --bench ceiling did not say how fast two threads are")
    return found
