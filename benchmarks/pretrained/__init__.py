"""What averaging gives from a start that was pretrained elsewhere: EfficientNet-Lite0 of ImageNet, on ten classes."""
