"""All methods, by their names on the command line. A new method is a file and two lines here."""

from selftaught.method import Method
from selftaught.methods.clustering.deepcluster import DeepCluster
from selftaught.methods.clustering.deepcluster_v2 import DeepClusterV2
from selftaught.methods.clustering.pcl import PCL
from selftaught.methods.clustering.swav import SwAV
from selftaught.methods.contrastive.cmc import CMC
from selftaught.methods.contrastive.cpc import CPC
from selftaught.methods.contrastive.densecl import DenseCL
from selftaught.methods.contrastive.infomin import InfoMin
from selftaught.methods.contrastive.instance_discrimination import InstanceDiscrimination
from selftaught.methods.contrastive.margin_contrastive import MarginContrastive
from selftaught.methods.contrastive.moco_v1 import MoCoV1
from selftaught.methods.contrastive.moco_v2 import MoCoV2
from selftaught.methods.contrastive.moco_v3 import MoCoV3
from selftaught.methods.contrastive.pirl import PIRL
from selftaught.methods.contrastive.simclr import SimCLR
from selftaught.methods.contrastive.simclr_v2 import SimCLRV2
from selftaught.methods.contrastive.triplet import Triplet
from selftaught.methods.decorrelation.barlow_twins import BarlowTwins
from selftaught.methods.decorrelation.vicreg import VICReg
from selftaught.methods.distillation.feature_maps import FeatureDistillation
from selftaught.methods.distillation.logits import Distillation
from selftaught.methods.generative.bigan import BiGAN
from selftaught.methods.generative.bigbigan import BigBiGAN
from selftaught.methods.generative.context_encoder import ContextEncoder
from selftaught.methods.generative.denoising_autoencoder import DenoisingAutoencoder
from selftaught.methods.generative.spotting_artifacts import SpottingArtifacts
from selftaught.methods.masked.mae import MAE
from selftaught.methods.masked.simmim import SimMIM
from selftaught.methods.pretext.colorization import Colorization
from selftaught.methods.pretext.context_prediction import ContextPrediction
from selftaught.methods.pretext.jigsaw import Jigsaw
from selftaught.methods.pretext.rotation import Rotation
from selftaught.methods.self_distillation.byol import BYOL
from selftaught.methods.self_distillation.dino import DINO
from selftaught.methods.self_distillation.dinov2 import DINOv2
from selftaught.methods.self_distillation.directpred import DirectPred
from selftaught.methods.self_distillation.ibot import IBOT
from selftaught.methods.self_distillation.simsiam import SimSiam
from selftaught.methods.supervised.supervised import Supervised

METHODS: dict[str, type[Method]] = {
    "barlow-twins": BarlowTwins,
    "bigan": BiGAN,
    "bigbigan": BigBiGAN,
    "byol": BYOL,
    "cmc": CMC,
    "colorization": Colorization,
    "context-encoder": ContextEncoder,
    "context-prediction": ContextPrediction,
    "cpc": CPC,
    "deepcluster": DeepCluster,
    "deepcluster-v2": DeepClusterV2,
    "denoising-autoencoder": DenoisingAutoencoder,
    "densecl": DenseCL,
    "dino": DINO,
    "dinov2": DINOv2,
    "directpred": DirectPred,
    "distillation": Distillation,
    "feature-distillation": FeatureDistillation,
    "ibot": IBOT,
    "infomin": InfoMin,
    "instance-discrimination": InstanceDiscrimination,
    "jigsaw": Jigsaw,
    "mae": MAE,
    "margin-contrastive": MarginContrastive,
    "moco-v1": MoCoV1,
    "moco-v2": MoCoV2,
    "moco-v3": MoCoV3,
    "pcl": PCL,
    "pirl": PIRL,
    "rotation": Rotation,
    "simclr": SimCLR,
    "simclr-v2": SimCLRV2,
    "simmim": SimMIM,
    "simsiam": SimSiam,
    "spotting-artifacts": SpottingArtifacts,
    "supervised": Supervised,
    "swav": SwAV,
    "triplet": Triplet,
    "vicreg": VICReg,
}
# the method where the user names none: by far the best one in short trainings on small data
DEFAULT = "simclr"
