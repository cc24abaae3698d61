"""
HTTP proxies as peers: nginx and HAProxy, in front of a receiver, as their recipes say.
"""

import re
import socket
import subprocess
from contextlib import contextmanager

from tests.helpers.ports import freePort
from tests.helpers.processes import CHECKOUT, within

RECIPES = (CHECKOUT / "docs/web.rst").read_text()


def recipe(caption):
    """
    A block of docs/web.rst.
    """
    found = re.search(
        rf"\.\. code-block:: \w+\n   :caption: {re.escape(caption)}\n\n((?:   .*\n|\n)+)", RECIPES
    )
    return re.sub("(?m)^   ", "", found[1])


@contextmanager
def started(command, port):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert within(lambda: _listens(port) or process.poll() is not None)
        assert process.poll() is None, process.communicate()[0]
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=10)


def _listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def nginx(directory, receiver, certificate, keeps=False):
    """
    Run nginx with the recipe's server.

    @param receiver: port of the receiver.
    @param certificate: path of a PEM file.
    @param keeps: many requests come by one connection to the receiver.
    """
    port = freePort()
    server = recipe("nginx").replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    upstream = f"upstream receiver {{ server 127.0.0.1:{receiver}; keepalive 4; }}\n" * keeps
    server = server.replace("127.0.0.1:8640", "receiver" if keeps else f"127.0.0.1:{receiver}")
    server = upstream + server.replace(
        "proxy_http_version 1.1;",
        "proxy_http_version 1.1;" + ' proxy_set_header Connection "";' * keeps,
    )
    server = server.replace("/etc/ssl/private/files.pem", str(certificate))
    paths = " ".join(
        f"{kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = directory / "nginx.conf"
    configuration.write_text(
        f"daemon off; master_process off; pid {directory}/nginx.pid; error_log stderr;\n"
        f"events {{}}\nhttp {{ access_log off; {paths}\n{server}\n}}\n"
    )
    with started(["nginx", "-p", str(directory), "-c", str(configuration)], port):
        yield port


@contextmanager
def haproxy(directory, receiver, certificate, caption="HAProxy"):
    """
    Run HAProxy with the recipe; arguments as those of L{nginx}.
    """
    port = freePort()
    text = recipe(caption).replace("bind :443", f"bind 127.0.0.1:{port}")
    text = text.replace("127.0.0.1:8640", f"127.0.0.1:{receiver}")
    configuration = directory / "haproxy.cfg"
    configuration.write_text(text.replace("/etc/ssl/private/files.pem", str(certificate)))
    with started(["haproxy", "-db", "-f", str(configuration)], port):
        yield port
