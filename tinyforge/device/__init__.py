"""What runs on the device: standard library, numpy, Pillow and one runtime.

Copied into every bundle as ``tinyforge_device``, so imports inside it are relative and the syntax is Python 3.9's.
"""
