"""
The web door: HTTP/1.1 into the same reception as the other protocols.

Nothing is imported here: a receiver loads the rest with the first HTTP request.
"""
