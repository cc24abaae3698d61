"""
Protocols for the ends of connections that tests look at.
"""

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol


class Reader(Protocol):
    """
    Keeps what comes, and the reason of the end.
    """

    data = b""
    lost = None

    def dataReceived(self, data):
        self.data += data

    def connectionLost(self, reason=None):
        self.lost = reason


class Collecting(Protocol):
    """
    Keeps what comes, and says when it is over.
    """

    def __init__(self):
        self.received = b""
        self.lost = Deferred()

    def dataReceived(self, data):
        self.received += data

    def connectionLost(self, reason):
        self.lost.callback(None)


class Trusting:
    """
    An L{IPoolable} that says it is always reusable, and looks at nothing.
    """

    def isReusable(self):
        return True

    def reset(self):
        return None

    def validate(self):
        return True

    def idleDataReceived(self, data):
        return False

    def goodbye(self):
        return None
