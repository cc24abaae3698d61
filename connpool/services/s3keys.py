"""
Access keys from the chain that every AWS program uses: environment, files, SSO, programs, and
the roles of machines and containers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from connpool.errors import StartFailed
from connpool.transfer.stores.s3.signing import Keys
from connpool.waiting import Waiters

__all__ = ["ChainKeys", "chainOf"]

#: Seconds after which keys are looked at again, and after which they are waited for.  botocore
#: gives new ones ten minutes before temporary ones end.
FRESH_SECONDS, STALE_SECONDS = 60.0, 300.0
#: Seconds that the chain may take.
MOST_SECONDS = 15.0

#: Errors of botocore whose text has nothing secret.
_REMEDIES = {
    "PartialCredentialsError": "set both halves of the key",
    "ProfileNotFound": "see AWS_PROFILE and ~/.aws/config",
    "ConfigParseError": "see that file",
}

_log = Logger()


class NoKeys(Exception):
    """
    The chain has no keys now; the text is one line and has nothing secret.
    """


def chainOf(session: Any) -> Callable[[], Keys]:
    """
    Return what asks a botocore session for its keys, new ones if those it has end soon.
    """
    credentials = session.get_credentials()

    def ask() -> Keys:
        if credentials is None:
            raise NoKeys(
                "no access keys were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "write ~/.aws/credentials, or give this machine a role"
            )
        frozen = credentials.get_frozen_credentials()
        keys = Keys(frozen.access_key or "", frozen.secret_key or "", frozen.token or "")
        for name, text in attrs.asdict(keys).items():
            if text != "".join(text.split()) or not (text.isascii() and text.isprintable()):
                raise NoKeys(f"the {name} key has a space, a line end or a letter that none has")
        return keys

    return ask


def _standardChain() -> Callable[[], Keys]:
    from botocore.session import Session

    return chainOf(Session())


class ChainKeys:
    """
    Keys of a chain, asked for in a thread of their own, since a chain may block for ever.

    @param reactor: the clock, and whose thread results come to.
    @param makeChain: reads files and environment anew, and returns what asks for keys.
    """

    def __init__(
        self, reactor: Any, makeChain: Callable[[], Callable[[], Keys]] = _standardChain
    ) -> None:
        self._reactor = reactor
        self._makeChain = makeChain
        self._chain: Callable[[], Keys] | None = None
        self._keys: Keys | None = None
        self._askedAt = 0.0
        self._asking = False
        self._waiters = Waiters()

    def first(self) -> Keys:
        """
        Get keys before the reactor runs; it blocks.

        @raise StartFailed: there are none; one line.
        """
        answers: list[Keys | Exception] = []
        thread = self._start(answers.append, anew=False)
        thread.join(MOST_SECONDS)
        answer = answers[0] if answers else _hangs()
        if isinstance(answer, Exception):
            raise StartFailed(str(answer))
        self._answered(answer)
        return answer

    def keys(self, refused: Keys | None = None) -> Deferred[Keys]:
        """
        See L{KeySource<connpool.transfer.stores.s3.requests.KeySource>}.
        """
        known = self._keys
        age = self._reactor.seconds() - self._askedAt
        anew = known is None or known == refused
        if anew or age > FRESH_SECONDS:
            self._ask(anew=anew)
        if known is not None and not anew and age <= STALE_SECONDS:
            return succeed(known)
        return Deferred.fromCoroutine(self._wait(None if anew else known))

    async def _wait(self, otherwise: Keys | None) -> Keys:
        waiting = self._waiters.wait()
        try:
            await waiting.addTimeout(
                MOST_SECONDS, self._reactor, onTimeoutCancel=lambda _, __: _fail(_hangs())
            )
        except NoKeys:
            if otherwise is None:
                raise
        keys = self._keys or otherwise
        assert keys is not None
        return keys

    def _ask(self, *, anew: bool) -> None:
        if self._asking:
            return
        self._asking = True
        self._start(lambda answer: self._reactor.callFromThread(self._answered, answer), anew=anew)

    def _start(self, tell: Callable[[Keys | Exception], Any], *, anew: bool) -> threading.Thread:
        def run() -> None:
            try:
                if self._chain is None or anew:
                    self._chain = self._makeChain()
                tell(self._chain())
            except NoKeys as e:
                tell(e)
            except Exception as e:
                tell(NoKeys(_why(e)))

        # nothing waits for it at the end of the process
        thread = threading.Thread(target=run, name="s3-keys", daemon=True)
        thread.start()
        return thread

    def _answered(self, answer: Keys | Exception) -> None:
        self._asking = False
        self._askedAt = self._reactor.seconds()
        if isinstance(answer, Exception):
            _log.warn("{why}", why=str(answer))
            self._waiters.fail(answer)
        else:
            self._keys = answer
            self._waiters.wake()


def _why(error: Exception) -> str:
    kind = type(error).__name__
    remedy = _REMEDIES.get(kind)
    if remedy is None:
        # its text might have something secret in it
        return f"the chain of credentials fails: {kind}"
    return f"{' '.join(str(error).split()).rstrip('.')}; {remedy}"


def _hangs() -> NoKeys:
    return NoKeys(f"the chain of credentials does not answer within {MOST_SECONDS:g} s")


def _fail(error: Exception) -> Any:
    raise error
