"""
Blocking sockets and nothing else: rawsockets.py receive|send PORT FILE
"""

import socket
import sys

SIZE = 1 << 20


def receive(port, path):
    with socket.create_server(("127.0.0.1", port)) as listener:
        connection, _ = listener.accept()
    buffer = memoryview(bytearray(SIZE))
    with connection, open(path, "wb", buffering=0) as file:
        while got := connection.recv_into(buffer):
            file.write(buffer[:got])


def send(port, path):
    buffer = memoryview(bytearray(SIZE))
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        open(path, "rb", buffering=0) as file,
    ):
        while got := file.readinto(buffer):
            connection.sendall(buffer[:got])


if __name__ == "__main__":
    {"receive": receive, "send": send}[sys.argv[1]](int(sys.argv[2]), sys.argv[3])
