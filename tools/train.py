"""Learn features without labels: `python tools/train.py --help`. The same as `pcssl train`."""

import sys

try:
    from pcssl.cli import main
except ModuleNotFoundError as error:
    if error.name not in ("pcssl", "pcssl.cli"):
        raise
    sys.exit("pcssl is not installed: run `make install` or `pip install -e .` in the repository")

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
