"""
What this distribution adds to C{twistd} and to endpoint strings.
"""
