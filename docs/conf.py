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


def setup(app):
    import sys
    from pathlib import Path

    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parent)]
    from metrics_table import insert

    app.connect("source-read", insert)
