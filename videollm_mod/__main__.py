"""`python -m videollm_mod` is the command line `videollm-mod`."""

import sys

from videollm_mod.cli import main

if __name__ == "__main__":
    sys.exit(main())
