"""
One module for each C{twistd} plugin, and what they share.
"""
