"""
C{python -m connpool} is the C{connpool} command.
"""

import sys

from connpool.commands import program

sys.exit(program())
