"""
Blocking sockets and nothing else, or the BLAKE3 of each piece at both ends:
rawsockets.py receive|send PORT FILE [blake3]
"""

import socket
import sys

SIZE = 1 << 20


def nothing(_):
    pass


def digests():
    from blake3 import blake3

    held = []
    return lambda view: held.append(blake3(view).digest())


def receive(port, path, take):
    with socket.create_server(("127.0.0.1", port)) as listener:
        connection, _ = listener.accept()
    buffer = memoryview(bytearray(SIZE))
    with connection, open(path, "wb", buffering=0) as file:
        while got := connection.recv_into(buffer):
            take(buffer[:got])
            file.write(buffer[:got])


def send(port, path, take):
    buffer = memoryview(bytearray(SIZE))
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        open(path, "rb", buffering=0) as file,
    ):
        while got := file.readinto(buffer):
            take(buffer[:got])
            connection.sendall(buffer[:got])


if __name__ == "__main__":
    run = {"receive": receive, "send": send}[sys.argv[1]]
    run(int(sys.argv[2]), sys.argv[3], digests() if sys.argv[4:] == ["blake3"] else nothing)
