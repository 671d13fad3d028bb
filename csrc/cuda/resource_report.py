"""What nvcc's assembler says of every kernel: registers, stack, spills.

    resource_report.py COMPILER ...         runs a compiler and keeps its report beside the object, NAME.resources.txt
    resource_report.py --gather OUT OBJECT...  one file of all: a line for each architecture and kernel
"""

import re
import subprocess
import sys
from pathlib import Path

# ptxas says of each kernel where it is, then of itself and perhaps of functions that it calls.
KERNEL = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def is_report(line: str) -> bool:
    return line.startswith(("ptxas info", "    "))


def compile_and_keep(command: list[str]) -> int:
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    lines = done.stderr.splitlines()
    print("".join(line + "\n" for line in lines if not is_report(line)), end="", file=sys.stderr)
    if "-o" in command and any(map(is_report, lines)):
        Path(command[command.index("-o") + 1] + ".resources.txt").write_text(done.stderr)
    return done.returncode


def gather(out: str, objects: list[str]) -> None:
    lines = []
    for report in sorted(Path(name + ".resources.txt") for name in objects):
        text = report.read_text()
        lines += [f"{report.name} warning {line}" for line in text.splitlines() if not is_report(line)]
        lines += [
            "{architecture} registers {registers} stack {stack} spill_stores {stores} spill_loads {loads} {kernel}".format(
                **found.groupdict()
            )
            for found in KERNEL.finditer(text)
        ]
    Path(out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "--gather":
        gather(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(compile_and_keep(sys.argv[1:]))
