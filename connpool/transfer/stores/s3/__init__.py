"""
The store on an S3-compatible engine, which several receivers share.
"""
