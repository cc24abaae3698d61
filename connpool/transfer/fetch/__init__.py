"""
Reading from a receiver: lists of what it has, and files that come back.
"""
