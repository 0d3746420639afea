"""The tables: speeds, ratios of speeds of the same round, targets, and where Sluice's time goes."""

import statistics
from dataclasses import dataclass


@dataclass
class Round:
    """What was measured when a round began: the load average, and operations a second by dtype."""

    load: float
    peaks: dict


def spread(values, digits):
    return f"{statistics.median(values):.{digits}f} | {min(values):.{digits}f}..{max(values):.{digits}f}"


def rates(contender):
    return [run["rate"] for run in contender.runs]


def ratios(one, other):
    """Speed of one over the other's, round by round."""
    return [x / y for x, y in zip(rates(one), rates(other))]


def shares(contender, rounds):
    """Per cent of the peak, round by round; none where the CPU has no instruction for the dtype."""
    pairs = zip(rates(contender), rounds)
    return [100 * rate * contender.flops / r.peaks[contender.dtype] for rate, r in pairs if contender.dtype in r.peaks]


def fastest(contenders):
    return max(contenders, key=lambda c: statistics.median(rates(c)), default=None)


def print_machine():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        fields = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    wanted = ["model name", "cpu family", "model"]
    print("CPU: " + ", ".join(f"{key} {fields.get(key, 'unknown')}" for key in wanted))


def print_all(count, contenders, rounds):
    if not contenders:
        return
    print(f"\n{count} sentences; load average when rounds began: {', '.join(f'{r.load:.1f}' for r in rounds)}; two threads' peak:")
    for dtype in rounds[0].peaks:
        print(f"  {dtype} {statistics.median(r.peaks[dtype] for r in rounds) * 1e-9:.0f} GFLOP/s")
    print("Ratios are to the first engine of the same dtype.\n")
    print("| dtype | engine | tokens/s | least..most | GFLOP/s | % of peak | least..most | tokens / CPU s | memory MiB | ratio | least..most |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for c in contenders:
        first = next(other for other in contenders if other.dtype == c.dtype)
        middle = {key: statistics.median(run[key] for run in c.runs) for key in ["rate", "per_cpu", "memory"]}
        share = shares(c, rounds)
        print(
            f"| {c.dtype} | {c.name} | {spread(rates(c), 0)} | {middle['rate'] * c.flops * 1e-9:.0f} "
            f"| {spread(share, 0) if share else '- | -'} | {middle['per_cpu']:.0f} | {middle['memory']:.0f} | {spread(ratios(c, first), 2)} |"
        )
    print_targets(contenders, rounds)
    print("\nWhere Sluice's time goes (medians, % of the phases, loading left out):\n")
    for c in contenders:
        if "phases" in c.runs[0]:
            medians = {p: statistics.median(run["phases"].get(p, 0.0) for run in c.runs) for p in c.runs[0]["phases"]}
            total = sum(medians.values())
            parts = [f"{p} {100 * s / total:.0f}" for p, s in sorted(medians.items(), key=lambda x: -x[1]) if s > 0.005 * total]
            print(f"- {c.dtype} {c.name}: {', '.join(parts)}", flush=True)


def print_targets(contenders, rounds):
    """What is wanted, as the median ratio of speeds; only what was timed."""

    def of(kind, dtype, name=""):
        return [c for c in contenders if c.kind == kind and c.dtype == dtype and name in c.name]

    print("\n| wanted | at least | found | least..most | |\n|---|---|---|---|---|")

    def row(what, target, found):
        if found:
            verdict = "met" if statistics.median(found) >= target else "NOT MET"
            print(f"| {what} | {target:.2f} | {spread(found, 2)} | {verdict} |")

    def speed(what, target, one, other):
        if one and other:
            row(f"{what}: {one.name} over {other.name}", target, ratios(one, other))

    for dtype in dict.fromkeys(c.dtype for c in contenders):
        ours = fastest(of("sluice", dtype, "1 x 2"))
        batch64 = fastest(c for c in of("transformers", dtype) if c.name.endswith("batch 64"))
        speed(dtype, 3.0, ours, batch64)
        speed(f"{dtype}, best batch", 2.5 if dtype == "f32" else 2.0, ours, fastest(of("transformers", dtype)))
        speed(dtype, 0.85, fastest(of("sluice", dtype, "2 x 1")), ours)
        speed(dtype, 0.7, fastest(of("sluice", dtype, "4 x 1")), ours)
        if dtype == "f32":
            speed("f32, time at most 1.5 x", 1 / 1.5, ours, fastest(of("ctranslate2", dtype)))
            speed("f32, time at most 1.5 x", 1 / 1.5, ours, fastest(of("dense", dtype)))
            if ours:
                row("f32: share of peak, Sluice, 1 x 2", 0.5, [share / 100 for share in shares(ours, rounds)])
        if dtype == "int8":
            speed("int8 over bf16", 1.3, ours, fastest(of("sluice", "bf16", "1 x 2")))
