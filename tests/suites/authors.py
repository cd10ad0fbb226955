"""The functions of rewardbench 0.1.4 that turn scores into its numbers, without the rest of the package.

Its utils.py imports fastchat, and its __init__ every model class; so the functions named are compiled from the installed
file as they stand. PACKAGE may name an unpacked wheel instead. Needs numpy, pandas and datasets:
numpy 2.4.6, pandas 3.1.1, datasets 5.2.0 and dill 0.4.1 on Python 3.11 give the committed files.
"""

import ast
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib

import numpy as np
import pandas as pd
from datasets import Dataset

VERSION = "0.1.4"


def folder():
    if "PACKAGE" in os.environ:
        root = pathlib.Path(os.environ["PACKAGE"])
        assert (root / f"rewardbench-{VERSION}.dist-info").is_dir(), f"expected rewardbench {VERSION} in {root}"
        return root / "rewardbench"
    assert importlib.metadata.version("rewardbench") == VERSION
    return pathlib.Path(importlib.util.find_spec("rewardbench").submodule_search_locations[0])


def functions(*names):
    """Those functions of utils.py, in this order."""
    scope = {"np": np, "pd": pd, "math": math, "Dataset": Dataset}
    tree = ast.parse((folder() / "utils.py").read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    exec(compile(tree, "utils.py", "exec"), scope)
    return [scope[name] for name in names]


def constants():
    scope = {}
    exec((folder() / "constants.py").read_text(), scope)
    return scope["EXAMPLE_COUNTS"], scope["SUBSET_MAPPING"]


def plain(value):
    """For JSON: NaN becomes null."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, (float, np.floating)):
        return None if math.isnan(value) else float(value)
    return value


def dump(cases):
    """A case a line."""
    return "[\n" + ",\n".join(json.dumps(plain(case)) for case in cases) + "\n]\n"
