"""
Sphinx settings.
"""

project = "connpool"
copyright = "2026, the connpool maintainers"
extensions = []
html_theme = "alabaster"
html_theme_options = {
    "description": "Connection pool, file transfer and datagram services for Twisted"
}
nitpicky = True
