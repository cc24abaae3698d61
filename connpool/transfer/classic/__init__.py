"""
The protocol of the tutorial.
"""
