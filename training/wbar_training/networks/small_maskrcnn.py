"""A Mask R-CNN for small images: the parts of torchvision's, on a ResNet-18, with narrow heads and few candidates.

    backbone   ResNet-18, a feature pyramid of 64 channels at strides 4 to 32, and one level more by pooling
    anchors    squares of 12, 24, 40, 64 and 96 pixels, and twice as wide or high
    heads      two layers of 256 for the boxes; two convolutions of 64 channels at 14 × 14 for the masks

Images are resized to 96 pixels by their short side. torchvision's own has a ResNet-50, images of 800 pixels, and a hundred
times the cost; nothing else here differs from it (He et al. 2017; Lin et al. 2017).
"""

from torch import nn
from torchvision import models
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

SIDE, MOST_SIDE = 96, 160  # pixels of the short and the long side
WIDTH, HIDDEN = 64, 256
ANCHORS = (12, 24, 40, 64, 96)
CANDIDATES = 64  # of an image that the heads learn from; torchvision: 512


def small_maskrcnn(num_classes: int) -> nn.Module:
    """Return it with freshly initialized weights. num_classes: with the background, which is class 0."""
    body = models.resnet18(weights=None)
    layers = {f"layer{number}": str(number - 1) for number in range(1, 5)}
    channels = [64, 128, 256, 512]
    backbone = BackboneWithFPN(body, layers, channels, WIDTH, LastLevelMaxPool())
    module: nn.Module = MaskRCNN(
        backbone,
        min_size=SIDE,
        max_size=MOST_SIDE,
        rpn_anchor_generator=AnchorGenerator(tuple((one,) for one in ANCHORS), ((0.5, 1.0, 2.0),) * len(ANCHORS)),
        rpn_pre_nms_top_n_train=500,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=200,
        rpn_post_nms_top_n_test=100,
        rpn_batch_size_per_image=CANDIDATES,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(WIDTH * 7**2, HIDDEN),
        box_predictor=FastRCNNPredictor(HIDDEN, num_classes),
        box_batch_size_per_image=CANDIDATES,
        mask_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=14, sampling_ratio=2),
        mask_head=MaskRCNNHeads(WIDTH, (WIDTH, WIDTH), 1),
        mask_predictor=MaskRCNNPredictor(WIDTH, WIDTH, num_classes),
    )
    return module
