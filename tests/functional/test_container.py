"""
The example image: its recipe, and the conditions that a container has, made here
without one.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.functional.test_surroundings import needs
from tests.helpers.processes import CHECKOUT, TWISTD, within

HERE = CHECKOUT / "examples/container"
RECIPE = (HERE / "Containerfile").read_text()


def words(instruction):
    """
    The JSON list of the last C{instruction}.
    """
    joined = RECIPE.replace("\\\n", " ")
    found = re.findall(rf"^{instruction}\b[^\[\n]*(\[.*\])$", joined, re.MULTILINE)
    return json.loads(found[-1])


def test_theRecipe():
    user = re.findall(r"^USER (\d+):(\d+)$", RECIPE, re.MULTILINE)
    assert user == [("10001", "0")]
    assert RECIPE.index("USER") > RECIPE.rindex("RUN")
    assert words("ENTRYPOINT")[:3] == ["twistd", "-n", "--pidfile="]
    assert words("HEALTHCHECK")[0] == "python"
    for copied in re.findall(r"^COPY (?!--from)(.*) \S+$", RECIPE, re.MULTILINE):
        for name in copied.split():
            assert (CHECKOUT / name).exists(), name
    compose = (HERE / "compose.yaml").read_text()
    for promise in ("read_only: true", "cap_drop: [ALL]", "no-new-privileges", 'user: "10001:0"'):
        assert promise in compose
    for port in ("8640", "8641/udp", "8690"):
        assert port in RECIPE
        assert port in compose


#: Nobody's, without any right beyond.
NOBODY = ["setpriv", "--reuid=54321", "--regid=0", "--clear-groups", "--no-new-privs"]
NOBODY += ["--bounding-set=-all"]

#: With our packages, for an interpreter that is not the environment's own.
PATHS = os.pathsep.join([str(CHECKOUT), *(path for path in sys.path if "site-packages" in path)])


def interpreter():
    """
    One that other users can run: an environment of root's may lie in its home.
    """
    for program in (sys.executable, "/usr/bin/python3"):
        words = [*NOBODY, "env", f"PYTHONPATH={PATHS}", program, "-c", "import msgspec, twisted"]
        if subprocess.run(words, check=False, capture_output=True).returncode == 0:
            return program
    pytest.skip("no other user can run this Python")


CONDITIONS = """
mount --make-rprivate / && mount --bind "$1" "$1" && mount -o remount,ro,bind / || exit 77
ip link set lo up; cd "$1"; shift
exec NOBODY env -i PATH="$PATH" PYTHONPATH="$PYTHONPATH" PYTHONDONTWRITEBYTECODE=1 "$@"
""".replace("NOBODY", " ".join(NOBODY))


@needs("-m", "-n", "-p", "--fork", "--mount-proc")
def test_theConditionsOfAContainer():
    """
    Process 1 of a user that no file knows, in no group of its own, without HOME,
    terminal and capabilities, on a root that cannot be written.
    """
    if shutil.which("setpriv") is None or shutil.which("ip") is None:
        pytest.skip("setpriv and ip are not installed")
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        os.chown(data, 10001, 0)
        data.chmod(0o770)
        text = (HERE / "services.toml").read_text()
        services = data / "services.toml"
        services.write_text(text.replace('"/data"', f'"{data}"'))
        services.chmod(0o644)
        command = [interpreter(), *TWISTD[1:], *words("ENTRYPOINT")[1:], *words("CMD")]
        command = [str(services) if word.endswith(".toml") else word for word in command]
        health = [sys.executable, *words("HEALTHCHECK")[1:]]
        said = data.parent / f"{data.name}.log"
        with open(said, "wb") as out:
            outer = subprocess.Popen(
                [
                    *("unshare", "-m", "-n", "-p", "--fork", "--mount-proc", "--kill-child"),
                    *("sh", "-c", CONDITIONS, "sh", str(data), *command),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "PYTHONPATH": PATHS},
            )
        try:

            def inside(*call):
                first = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().strip()
                return subprocess.run(
                    ["nsenter", "-t", first, "-n", *call],
                    check=False,
                    capture_output=True,
                    timeout=60,
                    env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
                )

            assert within(lambda: inside(*health).returncode == 0, 30), said.read_text()
            send = [sys.executable, "-m", "connpool", "send", "--to", "127.0.0.1:8640"]
            assert inside(*send, str(CHECKOUT / "LICENSE")).returncode == 0
            ping = [sys.executable, "-m", "connpool", "ping", "--count=1", "127.0.0.1:8641"]
            assert inside(*ping).returncode == 0
            assert (data / "LICENSE").read_bytes() == (CHECKOUT / "LICENSE").read_bytes()
            first = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text()
            os.kill(int(first), signal.SIGTERM)
            assert outer.wait(30) == 0
        finally:
            if outer.poll() is None:
                outer.kill()
                outer.wait(10)
            lines = said.read_text().splitlines()
            said.unlink()
        for line in lines:
            assert "traceback" not in json.loads(line)
