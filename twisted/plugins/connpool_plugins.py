"""
What this distribution adds to C{twistd} and to endpoint strings.
"""

from connpool.plugin import LazyClient, LazyServer

proxied = LazyServer("proxied", "connpool.proxyprotocol.strings:parseProxied")
secured = LazyServer("secured", "connpool.proxyprotocol.strings:parseSecured")
proxyheader = LazyClient("proxyheader", "connpool.proxyprotocol.strings:parseProxyHeader")
