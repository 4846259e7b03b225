"""Python runs this file at start where its directory is in PYTHONPATH: it loads the plug-in.

Promises that a `sitecustomize` further down the path, which this one hides, is run as well.
"""

import importlib.machinery
import importlib.util
import os
import sys

try:
    import status_indexer_plugin

    status_indexer_plugin.install()
except Exception as error:
    print("status_indexer_plugin: not in use: %r" % error, file=sys.stderr)

_here = os.path.dirname(os.path.abspath(__file__))
_spec = importlib.machinery.PathFinder.find_spec(
    "sitecustomize", [path for path in sys.path if os.path.abspath(path) != _here]
)
if _spec is not None and _spec.loader is not None:
    sys.modules["sitecustomize"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["sitecustomize"])
