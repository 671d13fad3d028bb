"""Show scenes and their features: `python tools/visualize.py --help`. The same as `pcssl visualize`."""

import sys

try:
    from pcssl.cli import main
except ModuleNotFoundError as error:
    if error.name not in ("pcssl", "pcssl.cli"):
        raise
    sys.exit("pcssl is not installed: run `make install` or `pip install -e .` in the repository")

if __name__ == "__main__":
    sys.exit(main(["visualize", *sys.argv[1:]]))
