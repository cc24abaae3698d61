"""
Metrics, health and the status page of whatever runs under a service.
"""
