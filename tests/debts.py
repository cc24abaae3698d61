LEGS = set()
CIRCLES = set()
FOREIGN = set()
DOCSTRINGS = {}
