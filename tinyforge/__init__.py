"""TinyForge: a handful of labelled images in, a tested, compressed classifier bundle for a small device out."""

__version__ = "0.1.0"
