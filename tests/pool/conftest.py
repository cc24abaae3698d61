"""
Fixtures for the pool's tests.
"""

import pytest
from twisted.logger import formatEvent, globalLogPublisher


@pytest.fixture
def caplogs():
    """
    A function that returns the texts logged so far.
    """
    texts = []

    def observe(event):
        texts.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lambda: list(texts)
    globalLogPublisher.removeObserver(observe)
