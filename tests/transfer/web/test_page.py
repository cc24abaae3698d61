"""
The page's document and its policy; what it does in a browser is in tests/functional.
"""

import base64
import hashlib
import html
import re
from html.parser import HTMLParser

import pytest

from connpool.transfer.web.page import Page
from tests.transfer.web.kit import HOST
from tests.transfer.world import Passwords

MAX_BYTES = 30_000


class Elements(HTMLParser):
    """
    Names and attributes of the elements, and the text of scripts and styles.
    """

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.texts = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.cdata_elem in {"script", "style"}:
            self.texts.append((self.cdata_elem, data))


@pytest.mark.parametrize("resumes", [True, False])
def test_onlyWhatIsInTheDocumentRuns(resumes):
    page = Page(resumes)
    assert len(page.text) < MAX_BYTES
    document = Elements(page.text.decode())
    policy = dict(each.partition(" ")[::2] for each in page.policy.split("; "))
    assert policy["default-src"] == "'none'"
    assert "unsafe" not in page.policy
    for kind, text in document.texts:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[f"{kind}-src"]
    assert [kind for kind, _ in document.texts] == (["style", "script"] if resumes else ["style"])
    assert resumes or policy["script-src"] == "'none'"
    for _, attributes in document.elements:
        # neither handlers nor styles, which the policy would stop, nor anything from elsewhere
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "href", "action", "formaction"):
            assert attributes.get(name, "./") in {"./", "data:,"}
    assert "://" not in page.text.decode()


def test_namesAreTextOnly():
    script = Page(True).text.decode()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


HTML = [b"Accept: text/html,application/xhtml+xml,*/*;q=0.8"]


def test_theDoorGivesThePage(door):
    answer = door.connect().ask(b"GET", b"/", None, HTML)
    assert answer.status == 200
    assert answer.fields["content-type"] == "text/html; charset=utf-8"
    assert answer.fields["content-security-policy"] == Page(True).policy
    assert answer.fields["cache-control"] == "no-store"
    # with no-referrer, browsers would not say whose form it is
    assert answer.fields["referrer-policy"] == "same-origin"
    assert answer.body == Page(True).text
    head = door.connect().ask(b"HEAD", b"/", None, HTML)
    assert (head.status, head.body) == (200, b"")
    assert head.fields["content-length"] == str(len(answer.body))


def test_thePageHasNoQuery(door):
    # links get one: ?fbclid=… and the like
    answer = door.connect().ask(b"GET", b"/?fbclid=1&x=%2f", None, HTML)
    assert (answer.status, answer.body) == (200, Page(True).text)
    # a name has none
    for method, target in ((b"PUT", b"/?x"), (b"GET", b"/x?y"), (b"POST", b"/?x")):
        assert door.connect().ask(method, target, b"").status == 400


def test_peopleCanReadWhyNot(door):
    targets = [b"/x?y", b"/d/", b"/.connpool/u/%s" % (b"A" * 43), b"/<script>alert(1)</script>%2"]
    for target in targets:
        answer = door.connect().ask(b"GET", target, None, HTML)
        assert answer.status >= 400
        assert answer.fields["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.fields["content-security-policy"]
        told = door.connect().ask(b"GET", target)
        assert told.status == answer.status
        assert html.escape(told.json["detail"]).encode() in answer.body
        assert b"<script>" not in answer.body


def test_othersAreToldWhatToDo(door):
    answer = door.connect().ask(b"GET", b"/")
    assert answer.fields["content-type"] == "text/plain; charset=utf-8"
    assert b"curl -T FILE" in answer.body


def test_thePageIsGivenBeforeAPassword(doors):
    # it says nothing, and asks for the password itself
    client = doors(authenticator=Passwords(b"right")).connect()
    assert client.ask(b"GET", b"/", None, HTML).status == 200
    assert client.ask(b"PUT", b"/x", b"small").status == 401


def test_thePageIsNotForEverybody(doors):
    client = doors().connect()
    assert client.ask(b"GET", b"/", host=b"evil.example").status == 421
    forwarded = [b"X-Forwarded-For: 192.0.2.1"]
    assert client.ask(b"GET", b"/", None, forwarded, HOST).status == 403
