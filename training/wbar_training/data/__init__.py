"""The images of one job: packed splits, augmentation, and how batches reach the device."""
