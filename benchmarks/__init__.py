"""
Peers side by side: C{python -m benchmarks transfer|pool|datagram}.
"""
