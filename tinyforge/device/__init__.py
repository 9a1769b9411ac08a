"""What runs on the device: standard library, numpy, Pillow and one runtime. Copied into every bundle as ``tinyforge_device``."""
