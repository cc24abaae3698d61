"""
Signatures of S3 requests: AWS Signature Version 4, as "Authenticating Requests:
Using the Authorization Header" of the Amazon S3 API reference has it.

S3 differs from other services in that a path is encoded once and never normalised.  The body
is not part of the signature (C{UNSIGNED-PAYLOAD}): engines exist that store another body than
the signed one without complaint, so the body has a checksum of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from urllib.parse import quote

import attrs

__all__ = ["Keys", "Signer", "encodedPath", "encodedQuery"]

#: Hash of the body that says that the body is not signed.
UNSIGNED = "UNSIGNED-PAYLOAD"

_ALGORITHM = "AWS4-HMAC-SHA256"


@attrs.frozen
class Keys:
    """
    Access keys; only their first part may be shown.

    @ivar access: the access key's identifier.
    @ivar secret: the secret access key.
    @ivar token: the session token of temporary keys; empty for lasting ones.
    """

    access: str
    secret: str = attrs.field(repr=False)
    token: str = attrs.field(default="", repr=False)


def encodedPath(bucket: str, key: str) -> str:
    """
    Return the path of an object, or of the bucket if C{key} is empty, percent-encoded once.
    """
    return f"/{quote(bucket, safe='')}" + (f"/{quote(key, safe='/')}" if key else "")


def encodedQuery(parameters: Iterable[tuple[str, str]]) -> str:
    """
    Return a query string in the order and the encoding that are signed.
    """
    pairs = sorted((quote(name, safe=""), quote(value, safe="")) for name, value in parameters)
    return "&".join(f"{name}={value}" for name, value in pairs)


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


@lru_cache(maxsize=16)
def _signingKey(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for step in (day, region, "s3", "aws4_request"):
        key = _hmac(key, step)
    return key


@attrs.frozen
class Signer:
    """
    Signs requests to one region.

    @ivar region: the name of the region; engines of one's own mostly take any.
    """

    region: str

    def sign(
        self,
        keys: Keys,
        at: float,
        method: str,
        path: str,
        query: str,
        headers: Sequence[tuple[str, str]],
    ) -> list[tuple[str, str]]:
        """
        Add what authenticates a request.

        @param at: seconds since the epoch, by the engine's clock.
        @param path: as L{encodedPath} makes it.
        @param query: as L{encodedQuery} makes it.
        @param headers: names in lower case with their values, C{host} among them, none twice;
            all of them are signed.
        @return: the headers to send.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
        day = stamp[:8]
        sent = [*headers, ("x-amz-content-sha256", UNSIGNED), ("x-amz-date", stamp)]
        if keys.token:
            sent.append(("x-amz-security-token", keys.token))
        canonical = sorted((name, " ".join(value.split())) for name, value in sent)
        names = ";".join(name for name, _ in canonical)
        lines = "".join(f"{name}:{value}\n" for name, value in canonical)
        request = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{UNSIGNED}"
        scope = f"{day}/{self.region}/s3/aws4_request"
        digest = hashlib.sha256(request.encode()).hexdigest()
        signature = _hmac(
            _signingKey(keys.secret, day, self.region), f"{_ALGORITHM}\n{stamp}\n{scope}\n{digest}"
        ).hex()
        credential = f"Credential={keys.access}/{scope}"
        said = f"{_ALGORITHM} {credential}, SignedHeaders={names}, Signature={signature}"
        return [*sent, ("authorization", said)]
