"""
A part of transports in memory.
"""


class PausableTransport:
    """
    A transport that knows its producer, and whether it is paused.
    """

    producer = None
    paused = False

    def registerProducer(self, producer, streaming):
        assert self.producer is None
        self.producer = producer

    def unregisterProducer(self):
        self.producer = None

    def pauseProducing(self):
        self.paused = True

    def resumeProducing(self):
        self.paused = False
