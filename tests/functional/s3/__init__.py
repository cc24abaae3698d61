"""
The store that several receivers share, on engines that run here.
"""
