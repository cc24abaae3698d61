"""
The page for people: one document that needs nothing from elsewhere, and the policy that
keeps it so.

The document is a form that works without a script.  Its script is a client of tus like any
other; a receiver whose store cannot keep uploads gives the form alone.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from connpool.transfer.web.answers import Answer
from connpool.transfer.web.request import Request

__all__ = ["Page"]

_SCRIPT = re.compile(r"<script>(.*?)</script>\n", re.DOTALL)
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)


class Page:
    """
    The page at C{/}.

    @param resumes: whether uploads can be resumed here, which the script needs.
    @ivar text: the document, UTF-8.
    @ivar policy: its content security policy: only what is in the document runs, by hash.
    """

    def __init__(self, resumes: bool) -> None:
        text = files("connpool.transfer.web").joinpath("page.html").read_text("utf-8")
        if not resumes:
            text = _SCRIPT.sub("", text)
        self.text = text.encode()
        self.policy = "; ".join(
            [
                "default-src 'none'",
                f"script-src {_hashes(_SCRIPT, text)}",
                f"style-src {_hashes(_STYLE, text)}",
                "img-src data:",
                "connect-src 'self'",
                "worker-src blob:",
                "form-action 'self'",
                "base-uri 'none'",
                "frame-ancestors 'none'",
            ]
        )

    async def answer(self, request: Request) -> Answer:
        """
        Give the document to a browser, and a line to others.
        """
        if not request.head.wantsPage:
            text = b"Files are received here. Send one with: curl -T FILE URL/\n"
            return Answer(200, [("Content-Type", "text/plain; charset=utf-8")], text)
        fields = [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Security-Policy", self.policy),
        ]
        return Answer(200, fields, self.text)


def _hashes(element: re.Pattern[str], text: str) -> str:
    """
    Return the sources of a policy that allow these elements of C{text}, and no others.
    """
    found = [hashlib.sha256(each.encode()).digest() for each in element.findall(text)]
    return " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in found) or "'none'"
