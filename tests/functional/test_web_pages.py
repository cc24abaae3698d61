"""
Pages of other sites in Chromium, which try to send to a receiver on the visitor's machine.
"""

import http.server
import threading
from contextlib import contextmanager

import pytest
import pytest_twisted

from tests.helpers.processes import twistd
from tests.observe.chromium import browser

pytestmark = [pytest.mark.slow, pytest.mark.peer("chromium")]

#: Sends in every way that needs no leave, and in one that does; remembers what became of it.
ATTACKS = """
(async () => {
  const url = 'http://%s/'
  const form = () => {
    const made = new FormData()
    made.append('f', new File(['evil'], 'evil'))
    return made
  }
  const post = (more) => ({ method: 'POST', ...more })
  const tries = [
    () => fetch(url, post({ mode: 'no-cors', body: form() })),
    () => fetch(url, post({ mode: 'no-cors', body: form(), referrerPolicy: 'no-referrer' })),
    () => fetch(url, post({ mode: 'no-cors', body: form(), credentials: 'include' })),
    () => fetch(url, post({ body: 'x=y', headers: { 'Content-Type': 'text/plain' } })),
    () => fetch(url + 'evil', { method: 'PUT', body: 'evil' }),
    () => fetch(url, post({ headers: { 'Tus-Resumable': '1.0.0', 'Upload-Length': '0' } })),
    async () => { if (!navigator.sendBeacon(url, form())) throw new Error('refused') },
  ]
  const ended = []
  for (const each of tries) {
    try {
      await each()
      ended.push('taken')
    } catch (e) {
      ended.push('failed')
    }
  }
  for (const sandbox of ['allow-forms allow-scripts', null]) {
    const frame = document.createElement('iframe')
    if (sandbox) frame.sandbox = sandbox
    frame.srcdoc = `<form method=post enctype=multipart/form-data action=${url}>
      <input name=f type=file><input name=relativePath value=evil></form>
      <script>const d = new DataTransfer(); d.items.add(new File(['evil'], 'evil'));
      document.forms[0].f.files = d.files; document.forms[0].submit()</script>`
    document.body.append(frame)
    await new Promise((go) => setTimeout(go, 500))
  }
  return ended
})()
"""
OWN = """
(() => {
  document.body.insertAdjacentHTML('beforeend',
    '<form id=own method=post enctype=multipart/form-data><input name=f type=file></form>')
  const form = document.getElementById('own')
  const chosen = new DataTransfer()
  chosen.items.add(new File(['own'], '%s'))
  form.elements.f.files = chosen.files
  form.submit()
})()
"""


@contextmanager
def site(policy):
    """
    Another site on this machine.
    """

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Referrer-Policy", policy)
            self.end_headers()
            self.wfile.write(b"<!DOCTYPE html><title>evil</title><body>")

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest_twisted.ensureDeferred
async def test_otherSites(tmp_path):
    (tmp_path / "profile").mkdir()
    with twistd(
        "filerecv", "--listen=tcp:0:interface=127.0.0.1", "--if-exists=replace", cwd=tmp_path
    ) as program:
        port = int(program.waitFor(r"listens on [^ ]*:(\d+),")[1])
        received = tmp_path / "received"

        def names():
            return {path.name for path in received.iterdir()} - {".connpool"}

        async with browser(tmp_path / "profile") as page:
            for policy in ("unsafe-url", "no-referrer"):
                with site(policy) as other:
                    for host in (f"127.0.0.1:{other}", f"localhost:{other}"):
                        await page.go(f"http://{host}/")
                        await page.waitFor("document.title == 'evil'")
                        ended = await page.evaluate(ATTACKS % f"127.0.0.1:{port}")
                        # the last one is sent without an answer; of others none can be read
                        assert ended == ["failed"] * 6 + ["taken"]
            assert "forbidden: a page of another site" in program.output
            assert names() == set()
            # a name that somebody points here, DNS rebinding
            await page.go(f"http://evil.localhost:{port}/")
            await page.waitFor("document.body.innerText.includes('421')")
            await page.evaluate(OWN % "evil")
            await page.waitFor("document.body.innerText.includes('421') && !window.own")
            assert names() == set()
            # and the receiver's own page
            await page.go(f"http://127.0.0.1:{port}/")
            await page.waitFor("document.forms.length > 0")
            page.complaints.clear()
            await page.evaluate(OWN % "own")
            await page.waitFor("document.body.innerText.includes('own: stored')")
            assert names() == {"own"}
            assert page.complaints == []
        assert "Traceback" not in program.output
