"""`python -m driftproof.cli` is the command `driftproof`."""

import sys

from driftproof.cli.main import main

sys.exit(main())
