"""What a command's process has imported already: the fork server loads this once, so that a child
takes milliseconds.
"""

import importlib
import pkgutil

import torch

import selftaught

torch.set_num_threads(1)
for _module in pkgutil.walk_packages(selftaught.__path__, "selftaught."):
    if not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)
