"""
A responder of one's own: every datagram comes back in reverse.

    twistd -n --pidfile= udpecho --protocol reverse

Where the file lies, and what it must not import, says examples/listener.
"""

from twisted.plugin import IPlugin
from zope.interface import implementer

from connpool.interfaces import IDatagramResponder, IDatagramResponderFactory


@implementer(IDatagramResponder)
class Reverse:
    # nothing about a datagram but what is in it
    wants = frozenset()
    # never longer than what it answers
    excess = 0
    # it does not know an answer when one comes back
    symmetricPorts = frozenset()

    def __init__(self):
        self.refused = {}

    def respond(self, data, info):
        return bytes(reversed(data))


@implementer(IPlugin, IDatagramResponderFactory)
class ReverseFactory:
    name = "reverse"
    description = "Every datagram comes back in reverse"

    def make(self, arguments):
        if arguments:
            raise ValueError("reverse takes no arguments; leave out the colon")
        return Reverse()


reverse = ReverseFactory()
