"""
The native protocol, C{cpt/1}: docs/protocol.rst describes it for peers.
"""
