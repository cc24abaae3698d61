"""
What engines say, and the answers that it becomes.
"""

import pytest

from connpool.errors import NoSpace, StoreError
from connpool.transfer.stores.s3 import calls
from connpool.transfer.stores.s3.answers import (
    MOST_XML_BYTES,
    Again,
    NotXML,
    answerOf,
    errorOf,
    parseXML,
    secondsOf,
)
from connpool.transfer.stores.s3.replies import Reply

PUT = calls.Put("k", b"x")
PUT_ABSENT = calls.Put("k", b"x", calls.ABSENT)
PUT_MATCH = calls.Put("k", b"x", calls.Match('"e"'))
PART = calls.PutPart("k", "u", 1, b"x", 0)
COMPLETE = calls.Complete("k", "u", ((1, '"e"', 0),), calls.ABSENT)
ABORT = calls.Abort("k", "u")
DATE = "Sun, 29 Nov 2026 05:00:00 GMT"
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def error(code, message="words"):
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return text.encode()


def reply(status, body=b"", **headers):
    return Reply(status, {name.replace("_", "-"): v for name, v in headers.items()}, body)


@pytest.mark.parametrize(
    ("call", "status", "code", "answer"),
    [
        (PUT_ABSENT, 412, "PreconditionFailed", calls.Conflict()),
        (PUT_ABSENT, 409, "ConditionalRequestConflict", calls.Conflict()),
        (PUT_MATCH, 404, "NoSuchKey", calls.Conflict()),
        (COMPLETE, 412, "PreconditionFailed", calls.Conflict()),
        (COMPLETE, 404, "NoSuchUpload", calls.NoSuchUpload()),
        (COMPLETE, 400, "InvalidPart", calls.InvalidPart()),
        (COMPLETE, 400, "InvalidPartOrder", calls.InvalidPart()),
        (COMPLETE, 400, "EntityTooSmall", calls.InvalidPart()),
        (PART, 404, "NoSuchUpload", calls.NoSuchUpload()),
        (PART, 400, "BadDigest", calls.BadDigest()),
        (PUT, 400, "XAmzContentChecksumMismatch", calls.BadDigest()),
        (ABORT, 404, "NoSuchUpload", calls.Done()),
        (calls.Delete("k"), 404, "NoSuchKey", calls.Done()),
        (calls.Get("k"), 404, "NoSuchKey", calls.Missing()),
        # Complete sends its 200 before it knows
        (COMPLETE, 200, "InvalidPart", calls.InvalidPart()),
        (COMPLETE, 200, "PreconditionFailed", calls.Conflict()),
        (COMPLETE, 200, "NoSuchUpload", calls.NoSuchUpload()),
    ],
)
def test_answers(call, status, code, answer):
    assert answerOf(call, reply(status, error(code))) == answer


@pytest.mark.parametrize(
    ("call", "status", "code", "flags"),
    [
        (PUT, 500, "InternalError", set()),
        (PUT, 502, "", set()),
        (PUT, 503, "ServiceUnavailable", set()),
        (PUT, 503, "SlowDown", {"throttled"}),
        (PUT, 429, "", {"throttled"}),
        (PUT, 400, "RequestTimeout", set()),
        (PUT, 409, "OperationAborted", set()),
        (PUT, 403, "RequestTimeTooSkewed", {"skewed"}),
        (PUT, 400, "ExpiredToken", {"refused"}),
        (PUT, 403, "InvalidAccessKeyId", {"refused"}),
        (calls.Head("k"), 403, "", {"refused"}),
        (PUT, 404, "NoSuchBucket", set()),
        (calls.Get("k"), 404, "NoSuchBucket", set()),
        (COMPLETE, 200, "InternalError", set()),
        (COMPLETE, 200, "SlowDown", {"throttled"}),
    ],
)
def test_again(call, status, code, flags):
    with pytest.raises(Again) as caught:
        answerOf(call, reply(status, error(code) if code else b""))
    assert {
        each for each in ("throttled", "refused", "skewed") if getattr(caught.value, each)
    } == flags


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (507, "", NoSpace, "no room"),
        (403, "QuotaExceeded", NoSpace, "no room"),
        (501, "NotImplemented", StoreError, "refuses Put"),
        (400, "KeyTooLongError", StoreError, "KeyTooLong"),
        (301, "PermanentRedirect", StoreError, "region=eu-west-3"),
        (307, "TemporaryRedirect", StoreError, "elsewhere"),
    ],
)
def test_forGood(status, code, kind, words):
    headers = {"x_amz_bucket_region": "eu-west-3", "location": "http://thief.example/"}
    with pytest.raises(kind, match=words) as caught:
        answerOf(PUT, reply(status, error(code) if code else b"", **headers))
    assert not isinstance(caught.value, StoreError) or "thief" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<CompleteMultipartUploadResult><ETag>",
        b"<a>" * 17 + b"</a>" * 17,
        b"<html><body><p>oops</body></html>",
        b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        b"<a>" + b" " * MOST_XML_BYTES + b"</a>",
        b"\xff\xfe<\x00a\x00",
        b"<?xml version='1.0' encoding='no-such'?><a/>",
    ],
    ids=range(8),
)
def test_badXML(body):
    """
    It is none, and a call whose 200 has it is made again.
    """
    with pytest.raises(NotXML):
        parseXML(body)
    for call in (COMPLETE, calls.CreateUpload("k"), calls.List("p"), calls.ListUploads("k")):
        with pytest.raises(Again):
            answerOf(call, reply(200, body))
    with pytest.raises(Again):
        answerOf(PUT, reply(500, body))


def test_noEntityOfAnotherFile():
    body = b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'
    with pytest.raises(NotXML, match="DTD"):
        parseXML(body)


def test_errorsFitOneLine():
    body = error("Evil", "first\nsecond\x1b[31m " + "long " * 100)
    body = body.replace(b"\x1b", b"")
    text = errorOf(reply(400, body)).text
    assert text.startswith("400 Evil first second")
    assert len(text) <= 200
    assert text.isprintable()


def test_found():
    headers = {
        "etag": '"e"',
        "last_modified": "Sun, 29 Nov 2026 04:59:50 GMT",
        "date": DATE,
        "x_amz_meta_connpool": "token",
        "content_length": "7",
    }
    found = answerOf(calls.Head("k"), reply(200, **headers))
    assert (found.etag, found.size, found.age, found.body) == ('"e"', 7, 10.0, b"")
    assert found.metadata == {"connpool": "token"}
    found = answerOf(calls.Get("k"), reply(200, b"content", **headers))
    assert (found.size, found.body) == (7, b"content")


def test_ranges():
    call = calls.Get("k", (2, 5))
    part = reply(206, b"234", content_range="bytes 2-4/10")
    assert (answerOf(call, part).body, answerOf(call, part).size) == (b"234", 10)
    # an engine may send all of it
    whole = reply(200, b"0123456789")
    assert (answerOf(call, whole).body, answerOf(call, whole).size) == (b"234", 10)
    beyond = reply(416, error("InvalidRange"), content_range="bytes */10")
    assert (answerOf(call, beyond).body, answerOf(call, beyond).size) == (b"", 10)


def test_listing():
    body = f"""<ListBucketResult xmlns="{NAMESPACE}"><IsTruncated>true</IsTruncated>
      <EncodingType>url</EncodingType>
      <Contents><Key>a+b%2Bc/%C3%A4</Key><Size>12</Size><ETag>"e"</ETag>
        <LastModified>2026-11-29T05:00:00.000Z</LastModified></Contents>
      <Prefix>a</Prefix><CommonPrefixes><Prefix>a+b/</Prefix></CommonPrefixes>
      <CommonPrefixes><Prefix>%C3%A4/</Prefix></CommonPrefixes></ListBucketResult>"""
    listed = answerOf(calls.List("a"), reply(200, body.encode(), date=DATE))
    assert listed.more
    assert listed.date == secondsOf(DATE)
    assert listed.entries == (calls.Entry("a b+c/ä", 12, '"e"', secondsOf(DATE)),)
    assert listed.prefixes == ("a b/", "ä/")


@pytest.mark.parametrize("key", [None, "a/1", "a/2"])
def test_aListingGoesOn(key):
    contents = f"<Contents><Key>{key}</Key><Size>1</Size></Contents>" if key else ""
    body = f"<ListBucketResult><IsTruncated>true</IsTruncated>{contents}</ListBucketResult>"
    with pytest.raises(Again, match="does not go on"):
        answerOf(calls.List("a/", "a/2"), reply(200, body.encode()))
    last = body.replace("true", "false").encode()
    assert not answerOf(calls.List("a/", "a/2"), reply(200, last)).more


def test_uploadsOfOneKey():
    body = f"""<ListMultipartUploadsResult xmlns="{NAMESPACE}"><EncodingType>url</EncodingType>
      <Upload><Key>a</Key><UploadId>1</UploadId></Upload>
      <Upload><Key>ab</Key><UploadId>2</UploadId></Upload></ListMultipartUploadsResult>"""
    assert answerOf(calls.ListUploads("a"), reply(200, body.encode())).uploadIds == ("1",)


def test_numbersThatAreNone():
    body = (
        b"<ListBucketResult><Contents><Key>a</Key><Size>many</Size></Contents></ListBucketResult>"
    )
    with pytest.raises(Again, match="many"):
        answerOf(calls.List("a"), reply(200, body))


def test_completed():
    name = "CompleteMultipartUploadResult"
    body = f"<?xml version='1.0'?>\n  <{name}><ETag>&quot;e-1&quot;</ETag></{name}>".encode()
    # spaces keep the connection awake until it is known
    assert answerOf(COMPLETE, reply(200, b"  \n" + body)) == calls.Done('"e-1"')


def test_datesThatAreNone():
    assert secondsOf("yesterday") == secondsOf("") == 0.0
