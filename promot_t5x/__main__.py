"""`python -m promot_t5x` is `promot-t5x`."""

import sys

from promot_t5x.cli.main import main

sys.exit(main())
