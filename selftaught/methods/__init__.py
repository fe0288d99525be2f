"""Every method, by the name it has on the command line. A new one is a file beside this one, and two lines here."""

from selftaught.method import Method
from selftaught.methods.barlow_twins import BarlowTwins
from selftaught.methods.byol import BYOL
from selftaught.methods.cmc import CMC
from selftaught.methods.cpc import CPC
from selftaught.methods.deepcluster import DeepCluster
from selftaught.methods.deepcluster_v2 import DeepClusterV2
from selftaught.methods.densecl import DenseCL
from selftaught.methods.directpred import DirectPred
from selftaught.methods.distillation import Distillation
from selftaught.methods.infomin import InfoMin
from selftaught.methods.instance_discrimination import InstanceDiscrimination
from selftaught.methods.margin_contrastive import MarginContrastive
from selftaught.methods.moco_v1 import MoCoV1
from selftaught.methods.moco_v2 import MoCoV2
from selftaught.methods.moco_v3 import MoCoV3
from selftaught.methods.pcl import PCL
from selftaught.methods.pirl import PIRL
from selftaught.methods.simclr import SimCLR
from selftaught.methods.simclr_v2 import SimCLRV2
from selftaught.methods.simsiam import SimSiam
from selftaught.methods.supervised import Supervised
from selftaught.methods.swav import SwAV
from selftaught.methods.triplet import Triplet
from selftaught.methods.vicreg import VICReg

METHODS: dict[str, type[Method]] = {
    "barlow-twins": BarlowTwins,
    "byol": BYOL,
    "cmc": CMC,
    "cpc": CPC,
    "deepcluster": DeepCluster,
    "deepcluster-v2": DeepClusterV2,
    "densecl": DenseCL,
    "directpred": DirectPred,
    "distillation": Distillation,
    "infomin": InfoMin,
    "instance-discrimination": InstanceDiscrimination,
    "margin-contrastive": MarginContrastive,
    "moco-v1": MoCoV1,
    "moco-v2": MoCoV2,
    "moco-v3": MoCoV3,
    "pcl": PCL,
    "pirl": PIRL,
    "simclr": SimCLR,
    "simclr-v2": SimCLRV2,
    "simsiam": SimSiam,
    "supervised": Supervised,
    "swav": SwAV,
    "triplet": Triplet,
    "vicreg": VICReg,
}
DEFAULT = "simclr"  # where none is asked for: far ahead of the others in the short trainings that small data allow
