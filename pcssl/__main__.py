"""`python -m pcssl` is the `pcssl` command."""

import sys

from pcssl.cli import main

if __name__ == "__main__":
    sys.exit(main())
