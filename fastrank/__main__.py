"""`python -m fastrank`, where the command `fastrank` is not on the path."""

from fastrank.cli import main

main()
