"""Loads the plug-in into every Python process that has this directory in PYTHONPATH.

Python runs a file of this name when it starts. Promises to run the next `sitecustomize` in the path,
which this one hides, and never to keep Python from starting.
"""

import importlib.machinery
import importlib.util
import os
import sys

try:
    import status_indexer_plugin

    status_indexer_plugin.install()
except Exception as error:
    print(f"status_indexer_plugin: inactive: {error!r}", file=sys.stderr)

_directory = os.path.dirname(os.path.abspath(__file__))
_next = importlib.machinery.PathFinder.find_spec(
    "sitecustomize", [path for path in sys.path if os.path.abspath(path) != _directory]
)
if _next is not None and _next.loader is not None:
    sys.modules["sitecustomize"] = importlib.util.module_from_spec(_next)
    _next.loader.exec_module(sys.modules["sitecustomize"])
