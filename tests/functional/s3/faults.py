"""
A proxy between a store and its engine that does one thing wrong at one request.
"""

from __future__ import annotations

import http.client
import socket
import threading
from contextlib import contextmanager

import attrs

#: What can go wrong with a request; see L{Proxy._spoil}.
FAULTS = (
    *("before", "amid", "after", "twice", "answer amid", "500", "503", "done but 500"),
    *("truncated", "200 with an error"),
)


@attrs.frozen
class Answer:
    status: int
    headers: list
    body: bytes
    head: bool = False

    def wire(self):
        lines = [f"HTTP/1.1 {self.status} {http.client.responses.get(self.status, 'x')}"]
        dropped = {"transfer-encoding", "connection"} | (set() if self.head else {"content-length"})
        lines += [f"{n}: {v}" for n, v in self.headers if n.lower() not in dropped]
        if not self.head:
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


def failed(status, code):
    return Answer(status, [], f"<Error><Code>{code}</Code></Error>".encode())


class Proxy:
    """
    Forwards requests to an engine, each over a connection of its own.

    @ivar requests: method and target of each that came.
    @ivar held: requests that were kept back, for L{release}.
    """

    def __init__(self, engineUrl):
        host, _, port = engineUrl.partition("://")[2].partition(":")
        self._engine = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._lock = threading.Lock()
        self._open = set()
        self.reset()
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self, fault=None, at=-1):
        """
        Forget what was, and do C{fault} to the request number C{at} from now.
        """
        self.requests = []
        self.held = []
        self.done = threading.Event()
        self._fault = fault
        self._at = at

    def close(self):
        self._server.close()
        for each in list(self._open):
            each.close()

    def _accept(self):
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self._open.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        reader = client.makefile("rb")
        try:
            while (request := readRequest(reader)) is not None:
                with self._lock:
                    number = len(self.requests)
                    self.requests.append(request[1])
                if number == self._at:
                    if not self._spoil(client, *request):
                        return
                else:
                    client.sendall(self.forward(*request).wire())
        except OSError:
            pass
        finally:
            reader.close()
            client.close()
            self._open.discard(client)

    def _spoil(self, client, raw, first):
        """
        @return: whether the connection goes on.
        """
        fault = self._fault
        self.done.set()
        if fault == "before":
            return False
        if fault == "hold":
            self.held.append((raw, first))
            return False
        if fault == "amid":
            half = raw[: len(raw) // 2] if raw.partition(b"\r\n\r\n")[2] else raw[:-4]
            with socket.create_connection(self._engine, timeout=20) as engine:
                engine.sendall(half)
            return False
        if fault in {"500", "503"}:
            code = "InternalError" if fault == "500" else "SlowDown"
            client.sendall(failed(int(fault), code).wire())
            return True
        if fault == "200 with an error":
            client.sendall(failed(200, "InternalError").wire() if isComplete(first) else b"")
            return isComplete(first)
        answer = self.forward(raw, first)
        if fault == "after":
            return False
        if fault == "twice":
            client.sendall(self.forward(raw, first).wire())
            return True
        if fault == "done but 500":
            client.sendall(failed(500, "InternalError").wire())
            return True
        wire = answer.wire()
        if fault == "truncated" and answer.body.lstrip().startswith(b"<"):
            wire = attrs.evolve(answer, body=answer.body[: len(answer.body) // 2]).wire()
            client.sendall(wire)
            return True
        assert fault in {"answer amid", "truncated"}, fault
        client.sendall(wire[: len(wire) // 2])
        return False

    def forward(self, raw, first):
        with socket.create_connection(self._engine, timeout=60) as engine:
            engine.sendall(raw)
            method = first.partition(" ")[0]
            response = http.client.HTTPResponse(engine, method=method)
            response.begin()
            body = response.read()
            return Answer(response.status, response.getheaders(), body, method == "HEAD")

    def release(self):
        """
        Let the engine carry out what was held back, now that it is late.

        @return: the status of each.
        """
        held, self.held = self.held, []
        return [self.forward(*each).status for each in held]


def isComplete(first):
    return first.startswith("POST ") and "uploadId=" in first


def readRequest(reader):
    """
    @return: the bytes of a request, and its method and target; L{None} at the end.
    """
    lines = []
    while (line := reader.readline()) not in {b"\r\n", b""}:
        lines.append(line)
    if not lines or not line:
        return None
    length = 0
    for each in lines[1:]:
        name, _, value = each.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    body = reader.read(length)
    if len(body) < length:
        return None
    return b"".join([*lines, b"\r\n", body]), lines[0].decode().rpartition(" ")[0]


@contextmanager
def proxied(engineUrl):
    proxy = Proxy(engineUrl)
    try:
        yield proxy
    finally:
        proxy.close()
