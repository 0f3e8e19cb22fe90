"""docs/gpu.md shows what the cost model and the tuning say today, and claims no measurement."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_page_is_what_the_script_writes():
    spec = importlib.util.spec_from_file_location("gpu_page", DOCS / "gpu.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (DOCS / "gpu.md").read_text()
    assert script.generated() in page, "run `python docs/gpu.py`"
    assert script.updated(page) == page
    measured = page.partition("## Measurements\n")[2].partition("## ")[0].strip()
    assert ("**Not yet measured.**" in page) == (measured == "None yet.")
