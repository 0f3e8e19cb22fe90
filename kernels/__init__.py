"""The ops of fastrank, one folder each; this package knows nothing of `fastrank` above it.

An op `<op>` lives in `kernels/<op>/` (reference, validation, registration, Triton), `csrc/<op>/` (C++ and CUDA),
`tests/kernels/test_<op>.py` and `benchmarks/bench_<op>.py`.
"""

if __name__ != "fastrank.kernels":
    raise ImportError(
        f"this folder was imported as {__name__!r}; it is installed as 'fastrank.kernels'. "
        "Run `pip install -e .` and import it under that name."
    )
