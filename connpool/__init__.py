"""
A connection pool, file transfer and datagram services for Twisted.

The three parts (L{connpool.pool}, L{connpool.transfer}, L{connpool.datagram})
do not know one another; they meet at Twisted's own interfaces.
"""

__version__ = "0.2.0.dev0"
