"""
Who may send, and who is who: TLS, certificates and passwords through real
sockets.
"""

import datetime as dt
import os

import pytest
import pytest_twisted
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString
from twisted.python import usage

from connpool.services.filerecv import Options, makeService
from connpool.transfer import Credentials, sendFiles
from connpool.transfer.send.client import Retry
from connpool.transfer.send.credentials import readCredentials
from tests.helpers.processes import connpool
from tests.helpers.receiving import filerecv
from tests.helpers.waiting import bounded

SECRET = b"correct horse"


class Authority:
    """
    A certificate authority and files with what it issued.
    """

    def __init__(self, directory):
        self.ca = trustme.CA()
        self.directory = directory
        directory.mkdir()
        self.ca.cert_pem.write_to_path(directory / "ca.pem")

    def issue(self, file, *names, **kwargs):
        issued = self.ca.issue_cert(*names, **kwargs)
        return self._write(file, issued.private_key_and_cert_chain_pem.bytes())

    def _write(self, file, pem):
        path = self.directory.parent / f"{self.directory.name}-{file}.pem"
        path.write_bytes(pem)
        return path

    def subject(self, file, attributes):
        """
        A client certificate with any subject, as a careless authority may sign.
        """
        signer = serialization.load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        authority = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(oid, text) for oid, text in attributes]))
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .sign(signer, hashes.SHA256())
        )
        return self._write(
            file,
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM),
        )


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "authority")


@pytest.fixture
def receiving(root):
    started = []

    def start(*argv):
        options = Options()
        options.parseOptions(
            [f"--directory={root}", "--allow-root", "--drain-timeout=5", *map(str, argv)]
        )
        service = makeService(options, reactor)
        service.privilegedStartService()
        service.startService()
        started.append(service)
        return service.listening.getHost().port

    yield start
    for service in started:
        pytest_twisted.blockon(bounded(service.stopService()))


def secured(certificate, trustRoots=None, where="tcp:0:interface=127.0.0.1"):
    description = f"secured:{where}:certificate={certificate}:privateKey={certificate}"
    return description + (f":trustRoots={trustRoots}" if trustRoots else "")


async def send(port, file, trust, *, host="localhost", client=None, credentials=None):
    """
    @return: the one outcome.
    """
    text = f"tls:{host}:{port}:trustRoots={trust}:endpoint=tcp\\:127.0.0.1\\:{port}"
    if client is not None:
        text += f":certificate={client}:privateKey={client}"
    report = await bounded(
        sendFiles(
            reactor,
            clientFromString(reactor, text),
            [str(file)],
            credentials=credentials,
            retry=Retry(attempts=1),
        )
    )
    (outcome,) = report.outcomes
    return outcome


def passwords(tmp_path):
    path = tmp_path / "passwords"
    path.write_text(f"alice:{SECRET.decode()}\nbob:other\n")
    return f"--auth=file:{path}"


def alice(secret=SECRET):
    return Credentials("alice", secret)


@pytest_twisted.ensureDeferred
async def test_passwordsWithinTLS(tmp_path, root, authority, file, receiving):
    (tmp_path / "identities").write_text("[users.alice]\ndirectory = 'from/alice'\n")
    port = receiving(
        "--listen",
        secured(authority.issue("server", "localhost")),
        passwords(tmp_path),
        f"--identities={tmp_path}/identities",
    )
    outcome = await send(port, file, authority.directory, credentials=alice())
    assert outcome.receipt.principal == "alice"
    assert (root / "from/alice/file").read_bytes() == b"content"
    for credentials, code in [
        (alice(b"wrong"), "auth-failed"),
        (None, "auth-failed"),
        # the password is right, the table does not have him
        (Credentials("bob", b"other"), "auth-failed"),
    ]:
        outcome = await send(port, file, authority.directory, credentials=credentials)
        assert outcome.error.code == code
        assert outcome.error.exitCode == 6


@pytest_twisted.ensureDeferred
async def test_guessingAtSpeedIsStopped(tmp_path, authority, file, receiving, monkeypatch):
    # none is let in meanwhile, however long these take here
    monkeypatch.setattr("connpool.services.credentials.GUESS_INTERVAL_SECONDS", 3600.0)
    port = receiving(
        "--listen", secured(authority.issue("server", "localhost")), passwords(tmp_path)
    )
    errors = [
        str((await send(port, file, authority.directory, credentials=alice(b"%d" % n))).error)
        for n in range(14)
    ]
    assert sum("too many wrong passwords" in error for error in errors) == 4
    # not even the right one, for a while
    outcome = await send(port, file, authority.directory, credentials=alice())
    assert "too many wrong passwords" in str(outcome.error)


@pytest_twisted.ensureDeferred
async def test_serversThatAreNotWhoTheyShouldBe(tmp_path, root, authority, file, receiving):
    other = Authority(tmp_path / "other")
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    servers = {
        "wrong authority": (other.issue("server", "localhost"), "localhost"),
        "wrong host": (authority.issue("elsewhere", "elsewhere.example"), "localhost"),
        "expired": (
            authority.issue(
                "expired",
                "localhost",
                not_before=yesterday - dt.timedelta(days=9),
                not_after=yesterday,
            ),
            "localhost",
        ),
    }
    for what, (certificate, host) in servers.items():
        port = receiving("--listen", secured(certificate), passwords(tmp_path))
        outcome = await send(port, file, authority.directory, host=host, credentials=alice())
        assert outcome.error.exitCode == 7, what
        assert "\n" not in str(outcome.error)
        assert "certificate" in str(outcome.error), (what, str(outcome.error))
    assert not [name for name in os.listdir(root) if name != ".connpool"]


@pytest_twisted.ensureDeferred
async def test_clientCertificates(tmp_path, root, authority, file, receiving):
    (tmp_path / "identities").write_text(
        "[certificates.'backup.example']\ndirectory = 'backups'\nmax-file-size = 10\n"
    )
    server = authority.issue("server", "localhost")
    port = receiving(
        "--listen",
        secured(server, authority.directory / "ca.pem"),
        f"--identities={tmp_path}/identities",
    )
    client = authority.issue("client", "backup.example", common_name="backup.example")
    outcome = await send(port, file, authority.directory, client=client)
    assert outcome.receipt.principal == "certificate:backup.example"
    assert (root / "backups/file").read_bytes() == b"content"
    file.write_bytes(b"more than ten bytes")
    outcome = await send(port, file, authority.directory, client=client)
    assert outcome.error.code == "too-large"

    outcome = await send(port, file, authority.directory)
    assert outcome.error.exitCode == 7, "no certificate"
    foreign = Authority(tmp_path / "foreign").issue("client", "x", common_name="backup.example")
    outcome = await send(port, file, authority.directory, client=foreign)
    assert outcome.error.exitCode == 7, "a certificate of somebody else's authority"


@pytest_twisted.ensureDeferred
async def test_hostileSubjects(tmp_path, root, authority, file, receiving):
    (tmp_path / "identities").write_text("[certificates.'backup.example']\ndirectory = 'b'\n")
    server = authority.issue("server", "localhost")
    port = receiving(
        "--listen",
        secured(server, authority.directory / "ca.pem"),
        f"--identities={tmp_path}/identities",
    )
    name = NameOID.COMMON_NAME
    subjects = [
        [(name, "../../etc")],
        [(name, "backup.example/../x")],
        [(name, "Backup.example")],
        [(name, "backup.example\x1b[2J")],
        [(name, "other"), (name, "backup.example")],
        [(NameOID.ORGANIZATION_NAME, "backup.example")],
        [(name, "anonymous")],
        [(name, "certificate:backup.example")],
    ]
    for number, attributes in enumerate(subjects):
        client = authority.subject(f"hostile{number}", attributes)
        outcome = await send(port, file, authority.directory, client=client)
        assert outcome.error is not None, attributes
        assert outcome.error.code == "forbidden", (attributes, outcome.error)
    assert not [entry for entry in os.listdir(root) if entry != ".connpool"]


@pytest_twisted.ensureDeferred
async def test_noPasswordLeavesInTheClear(tmp_path, root, file, receiving):
    # loopback is the one place where a plain connection is safe
    port = receiving("--listen=tcp:0:interface=127.0.0.1", passwords(tmp_path))
    report = await bounded(
        sendFiles(
            reactor,
            clientFromString(reactor, f"tcp:127.0.0.1:{port}"),
            [str(file)],
            credentials=alice(),
        )
    )
    assert report.outcomes[0].receipt.principal == "alice"


@pytest.mark.parametrize(
    ("argv", "remedy"),
    [
        (["--listen=tcp:0", "--auth=file:{tmp}/passwords"], "secured:"),
        (["--auth=memory:alice:secret"], "use file:"),
        (["--auth=file:{tmp}/none"], "cannot read"),
        (["--auth=nonsense:x"], "nonsense"),
        (["--identities={tmp}/none"], "cannot read"),
        (["--identities={tmp}/identities"], "--auth"),
        (["--identities={tmp}/broken", "--auth=file:{tmp}/passwords"], "[users.NAME]"),
    ],
)
def test_mistakesAreOneLine(tmp_path, root, argv, remedy):
    passwords(tmp_path)
    (tmp_path / "identities").write_text("[users.alice]\n")
    (tmp_path / "broken").write_text("[user.alice]\n")
    options = Options()
    words = [word.format(tmp=tmp_path) for word in argv]
    with pytest.raises(usage.UsageError) as caught:
        options.parseOptions([f"--directory={root}", "--allow-root", *words])
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_theCommandKeepsSecretsOffTheCommandLine(tmp_path, root, file):
    private = tmp_path / "credentials"
    private.write_text("alice:" + SECRET.decode() + "\n")
    private.chmod(0o600)
    with filerecv(root, passwords(tmp_path), cwd=tmp_path) as (receiver, place):
        # 0: stored as asked; tmpfs cannot promise "full"
        asked = ["send", "--durability=none", "--to", place]
        assert connpool(*asked, f"--credentials={private}", file).returncode == 0
        assert (
            connpool(*asked, file, CONNPOOL_CREDENTIALS="alice:" + SECRET.decode()).returncode == 0
        )
        wrong = connpool(*asked, file, CONNPOOL_CREDENTIALS="alice:wr0ng")
        assert wrong.returncode == 6
        assert connpool(*asked, file).returncode == 6
        private.chmod(0o644)
        exposed = connpool(*asked, f"--credentials={private}", file)
        assert exposed.returncode == 2
        assert "chmod 600" in exposed.stderr
        output = receiver.output + wrong.stderr + exposed.stderr
    assert "wr0ng" not in output
    assert SECRET.decode() not in output


def test_theTableLimitsEachSender(tmp_path, root):
    """
    One transfer at a time, of files that are large: all arrive; a day's bytes
    and one connection too many are one line each.
    """
    (tmp_path / "identities").write_text(
        "[defaults]\nmax-transfers = 1\nmax-connections = 1\n"
        '[users.alice]\nmax-bytes-per-day = "4M"\n'
    )
    (tmp_path / "files").mkdir()
    for number in range(6):
        (tmp_path / "files" / f"{number}").write_bytes(os.urandom(600_000))
    (tmp_path / "more").write_bytes(os.urandom(700_000))
    table = f"--identities={tmp_path / 'identities'}"
    with filerecv(root, table, passwords(tmp_path), cwd=tmp_path) as (receiver, place):
        asked = ["send", "--durability=none", "--to", place]
        alice = {"CONNPOOL_CREDENTIALS": "alice:" + SECRET.decode()}
        sent = connpool(*asked, "--jobs=3", tmp_path / "files", **alice)
        assert sent.returncode == 0, sent.stderr
        assert len(list((root / "files").iterdir())) == 6
        more = connpool(*asked, tmp_path / "more", **alice)
        assert more.returncode == 4
        assert "bytes of 'alice' are left of these 24 hours" in more.stderr + more.stdout
        output = receiver.output
    assert "Traceback" not in output
    assert len(os.listdir(root)) == 2  # files/ and what is private


@pytest.mark.parametrize("text", ["", "alice", ":secret", "alice:"])
def test_credentialsThatAreNone(tmp_path, text):
    path = tmp_path / "credentials"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="USER:PASSWORD"):
        readCredentials(str(path), {})
    if text:
        with pytest.raises(ValueError, match="USER:PASSWORD") as caught:
            readCredentials(None, {"CONNPOOL_CREDENTIALS": text})
        assert "secret" not in str(caught.value)
    assert readCredentials(None, {}) is None
