"""The deep unconstrained feature model, many runs as one batched program (Garrod, Keating & Thrampoulidis 2026)."""
