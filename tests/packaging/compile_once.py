"""A compiler launcher (CMAKE_CXX_COMPILER_LAUNCHER): what was compiled from another copy of the same source is copied.

    compile_once.py g++ ... -o x.o -c x.cpp

Copies differ in their paths only. In the environment: KEEP, the folder of what was compiled, and SOURCE, this copy.
Only what one test reads, the AVX-512 objects, is optimised: nobody asks how fast the others run.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path


def main(command: list[str]) -> int:
    if not {"-c", "-MF"} <= set(command):  # a link, or one of CMake's own questions
        return subprocess.run(command).returncode
    output = Path(command[command.index("-o") + 1])
    if "avx512" not in command[command.index("-o") + 1]:
        command = ["-O0" if part == "-O3" else part for part in command]
    text = " ".join(command).replace(os.environ["SOURCE"], "")
    # Python's and pybind11's headers lie in pip's build environment, whose name is new every time.
    text = " ".join(part for part in text.split() if "/pip-build-env-" not in part)
    name = str(output).replace("/", "-")
    kept = Path(os.environ["KEEP"]) / f"{name}-{hashlib.sha256(text.encode()).hexdigest()}"
    if not kept.exists():
        if status := subprocess.run(command).returncode:
            return status
        part = Path(f"{kept}-{os.getpid()}")
        shutil.copy(output, part)
        part.replace(kept)
    shutil.copy(kept, output)
    # Ninja reads what the compiler depended on.
    depends = Path(command[command.index("-MF") + 1])
    depends.write_text(f"{output}:\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
