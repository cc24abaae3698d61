"""
What this distribution adds to C{twistd} and to endpoint strings.
"""

from connpool.plugin import DaemonMaker, LazyClient, LazyServer, LazyStore

filerecv = DaemonMaker(
    "connpool file receiver", "connpool.services.filerecv", "Receive files.", "filerecv"
)

s3 = LazyStore(
    "s3",
    "connpool.services.s3store:make",
    "On an S3 engine, shared by several receivers.",
    ["quota", "keepPartials", "onReceived"],
)

proxied = LazyServer("proxied", "connpool.proxyprotocol.strings:parseProxied")
secured = LazyServer("secured", "connpool.proxyprotocol.strings:parseSecured")
proxyheader = LazyClient("proxyheader", "connpool.proxyprotocol.strings:parseProxyHeader")
pooled = LazyClient("pool", "connpool.pool.strings:parsePool")

udpecho = DaemonMaker(
    "connpool udpecho",
    "connpool.services.udpecho",
    "Answers datagrams, so that others can measure how they get through.",
    "udpecho",
)

compose = DaemonMaker(
    "connpool compose",
    "connpool.services.compose",
    "Run several services in one process, from a file.",
    "compose",
)

relay = DaemonMaker(
    "connpool relay",
    "connpool.services.poolrelay",
    "Give clients upstream connections made ahead of time, and not too many.",
    "connpool",
)

filesend = DaemonMaker(
    "connpool file sender",
    "connpool.services.filesend",
    "Forward what settles in a folder.",
    "filesend",
)

udpprobe = DaemonMaker(
    "connpool udpprobe",
    "connpool.services.udpprobe",
    "Keeps measuring paths, and exports what it finds as metrics.",
    "udpprobe",
)
