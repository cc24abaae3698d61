"""
C{python -m connpool} is the C{connpool} command.
"""

import sys

from connpool.commands import main

sys.exit(main())
