"""Reads what valgrind --tool=callgrind wrote, and sums it up by groups of functions."""

import os
import re
from collections import Counter

# All kernels run inside these functions; what such a call is for is told by the source file that it stands in.
KERNEL_ENTRY = re.compile(r"device::cpu::isa::(Isa::run|on_\w+)")
KERNELS = {
    "gemm.rs": "products",
    "grouped.rs": "products",
    "linear.rs": "products",
    "norm.rs": "norms",
    "exp.rs": "head and softmax",
    "head.rs": "head and softmax",
}
# The rest, by the first pattern found in "file:function".
GROUPS = [
    ("rows packed and gathered", r"src/device/"),
    ("memory", r"malloc|free|calloc|memset|memcpy|memmove|mem_\w+|alloc::|drop_in_place"),
    ("gate and dispatch", r"sluicegate::moe"),
    ("scheduling", r"sluicegate::(decode|comm|model)|mca_|opal_|ompi_|PMPI|MPI_"),
    ("input and output", r"sluicegate::(corpus|results|checkpoint|metrics)|tokenizers|onig|serde|H5|hdf5|sha2|zlib|deflate"),
]
REST = "rest"
NAMES = [*dict.fromkeys(["products", "attention", *KERNELS.values()]), *(name for name, _ in GROUPS), REST]


def group_of_kernel(file):
    return "attention" if "/cpu/attention/" in file else KERNELS.get(os.path.basename(file), REST)


def group_of(file, function):
    text = f"{file}:{function}"
    return next((name for name, pattern in GROUPS if re.search(pattern, text)), REST)


def read(path):
    """Instructions by group; the few functions that a kernel calls count in its group and once more in theirs. A line of the file is a position and its cost, or, after `calls=`, the cost of all that was called."""
    found, names = Counter(), {}
    file = function = callee = ""
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in map(str.rstrip, lines):
            record = re.match(r"(fl|fi|fe|fn|cfn)=(\(\d+\))(?: (.*))?$", line)
            if record:
                key, number, name = record.groups()
                # A name is spelled out once; files and functions are numbered apart.
                name = names.setdefault((key in ("fn", "cfn"), number), name)
                if key == "fn":
                    function = name
                elif key == "cfn":
                    callee = name
                else:
                    file = name
            elif line.startswith("cfi=") or line.startswith("cfl="):
                number, _, name = line[4:].partition(" ")
                names.setdefault((False, number), name)
            elif line.startswith("calls="):
                cost = int(next(lines).split()[-1])
                if KERNEL_ENTRY.search(callee) and not KERNEL_ENTRY.search(function):
                    found[group_of_kernel(file)] += cost
            elif re.match(r"[+\-*\d]", line) and not KERNEL_ENTRY.search(function):
                found[group_of(file, function)] += int(line.split()[-1])
    return found
