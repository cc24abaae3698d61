"""
The receiving side: from the first bytes of a connection to a receipt.
"""
