"""Every method, by the name it has on the command line. A new one is a file beside this one, and two lines here."""

from selftaught.method import Method
from selftaught.methods.byol import BYOL
from selftaught.methods.deepcluster_v2 import DeepClusterV2
from selftaught.methods.moco_v2 import MoCoV2
from selftaught.methods.simclr import SimCLR
from selftaught.methods.supervised import Supervised
from selftaught.methods.swav import SwAV

METHODS: dict[str, type[Method]] = {
    "byol": BYOL,
    "deepcluster-v2": DeepClusterV2,
    "moco-v2": MoCoV2,
    "simclr": SimCLR,
    "supervised": Supervised,
    "swav": SwAV,
}
