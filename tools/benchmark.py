"""Time the compiled operators: `python tools/benchmark.py conv --peers`. The same as `pcssl benchmark`."""

import sys

try:
    from pcssl.cli import main
except ModuleNotFoundError as error:
    if error.name not in ("pcssl", "pcssl.cli"):
        raise
    sys.exit("pcssl is not installed: run `make install` or `pip install -e .` in the repository")

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
