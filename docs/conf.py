"""
Sphinx settings.
"""

project = "connpool"
copyright = "2026, the connpool maintainers"
extensions = []
html_theme = "alabaster"
html_theme_options = {
    "description": "Connection pool, file transfer and datagram services for Twisted",
    # room for diagrams of a hundred columns
    "page_width": "1180px",
    "body_max_width": "none",
}
nitpicky = True


def setup(app):
    import sys
    from pathlib import Path

    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parent)]
    import metrics_table
    import state_diagrams

    app.connect("source-read", metrics_table.insert)
    app.connect("source-read", state_diagrams.insert)
