"""
The frames and messages of C{cpt/1}, as C{docs/protocol.rst} describes them.
"""
