"""The README's Python runs as written, in its order, in one session."""

import re
from pathlib import Path

import pytest
from watched_loop import off_the_checkout

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    for library in ("timm", "lightning", "tensorboard", "transformers"):
        pytest.importorskip(library, reason=f"the README's examples need {library}: pip install 'fastrank[dev]'")
    from transformers.utils import is_kernels_available

    off_the_checkout(is_kernels_available)
    monkeypatch.chdir(tmp_path)
    session = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    assert len(blocks) == 9
    for block in blocks:
        exec(compile(block, str(README), "exec"), session)
    assert "40 (40, 40)" in capsys.readouterr().out
