"""Named preprocessings of common families of checkpoints."""

from __future__ import annotations

from dataclasses import replace

from ..types import Interpolation, Preprocessing

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)
_ONE = (1 / 255, 1 / 255, 1 / 255)  # a standard deviation of one grey level: only the mean is subtracted


def _imagenet(
    short_side: int, interpolation: Interpolation, crop: int = 224, floor_crop: bool = False
) -> Preprocessing:
    return Preprocessing(short_side, (crop, crop), interpolation, IMAGENET_MEAN, IMAGENET_STD, floor_crop=floor_crop)


# keras.applications.imagenet_utils, mode "caffe": BGR, mean subtracted, no scaling
_KERAS = Preprocessing(
    None,
    (224, 224),
    Interpolation.BILINEAR,
    (103.939 / 255, 116.779 / 255, 123.68 / 255),
    _ONE,
    is_bgr=True,
)
# the same, mode "tf": x / 127.5 - 1
_KERAS_V2 = Preprocessing(None, (224, 224), Interpolation.BILINEAR, _HALF, _HALF)
# transformers: microsoft/resnet-50's ConvNextImageProcessor, crop_pct 0.875
_HUGGING_FACE = _imagenet(256, Interpolation.BICUBIC, floor_crop=True)

PRESETS = {
    # torchvision: references/classification, ResNet50_Weights
    "torchvision-v1": _imagenet(256, Interpolation.BILINEAR),
    "torchvision-v2": _imagenet(232, Interpolation.BILINEAR),
    # timm: short side = floor(size / crop_pct); resnet50.a1_in1k, resnet50.tv2_in1k, resnet50d.ra4_e3600
    "timm": _imagenet(235, Interpolation.BICUBIC),
    "timm-tv2": _imagenet(201, Interpolation.BILINEAR, 176),
    "timm-half": Preprocessing(235, (224, 224), Interpolation.BICUBIC, _HALF, _HALF),
    # transformers' processor with Pillow, and with torchvision, the default since 5
    "huggingface": _HUGGING_FACE,
    "huggingface-torchvision": replace(_HUGGING_FACE, resizer="torchvision"),
    # with a filter that averages, and with the default of keras.utils.load_img, which picks pixels
    "keras": _KERAS,
    "keras-nearest": replace(_KERAS, interpolation=Interpolation.NEAREST),
    "keras-v2": _KERAS_V2,
    "keras-v2-nearest": replace(_KERAS_V2, interpolation=Interpolation.NEAREST),
    # tf_slim preprocessing/vgg_preprocessing.py: RGB, mean subtracted, no scaling
    "tf-slim": Preprocessing(256, (224, 224), Interpolation.BILINEAR, (123.68 / 255, 116.78 / 255, 103.94 / 255), _ONE),
}
