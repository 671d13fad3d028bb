"""Runs a compiler and keeps what it says on stderr beside the object file, as NAME.resources.txt.

nvcc's assembler reports there the registers, stack and spills of every kernel and architecture.
"""

import subprocess
import sys


def main(command: list[str]) -> int:
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    report = [line for line in done.stderr.splitlines() if line.startswith("ptxas info")]
    other = [line for line in done.stderr.splitlines() if not line.startswith(("ptxas info", "    "))]
    if other:
        print("\n".join(other), file=sys.stderr)
    if "-o" in command and report:
        with open(command[command.index("-o") + 1] + ".resources.txt", "w") as file:
            file.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
