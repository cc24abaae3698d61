"""
The tutorial's protocol: the bare name, C{ok}, bytes until the end of the
connection.  No length, no digest, no resume.
"""

from connpool.transfer.classic.sender import sendClassic

__all__ = ["sendClassic"]
