"""``python -m headset``."""

import sys

from headset.main import main

sys.exit(main())
