"""
Receiving and sending files.
"""
