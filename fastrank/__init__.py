"""fastrank: per-step spectral tracking of network training, nearly free, with error bounds."""

__version__ = "0.1.0"
