"""
What an answer costs: calls, not times.
"""

import pytest

from connpool.datagram import Policy
from connpool.datagram.mmsg import available
from tests.datagram.peers import answering, client, read, where
from tests.helpers.cost import calls

#: Calls of functions, in Python or C, for one answer of a full batch, and for one alone.
CALLS_PER_ANSWER = 10
CALLS_ALONE = 20


@pytest.mark.skipif(not available(), reason="no recvmmsg as we know it")
@pytest.mark.parametrize(("count", "most"), [(64, 64 * CALLS_PER_ANSWER), (1, CALLS_ALONE)])
def test_anAnswerCostsFewCalls(count, most):
    high = 1e9
    policy = Policy(trustLoopback=False, rate=high, burst=10**9, maxRate=high)
    with answering(policy=policy) as port, client(to=where(port)) as sock:
        sock.send(b"first")  # brings what is made once
        port.doRead()
        assert read(sock) == b"first"
        for number in range(count):
            sock.send(number.to_bytes(8))
        taken = calls(port.doRead)
        answers = sorted(int.from_bytes(read(sock)) for _ in range(count))
    assert answers == list(range(count))
    assert taken <= most, taken
