"""Run the command ``skt``: ``python -m skt_components``."""

import sys

from skt_components.commands import main

if __name__ == "__main__":
    sys.exit(main())
