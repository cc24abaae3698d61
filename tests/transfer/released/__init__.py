"""
Released versions: their code, and what they left on disk.
"""
