"""
What several tests need: bounded waits and processes that end.
"""
