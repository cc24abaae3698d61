"""
The sending side: from a path to a receipt.
"""
