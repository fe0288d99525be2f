"""`python -m selftaught`, for torchrun."""

import sys

from selftaught.cli.main import main

sys.exit(main())
