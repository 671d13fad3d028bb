"""The examples of docs/image.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "image.md").read_text()
EXAMPLES = dict(re.findall(r"^### (.+)\n(?:(?!#|```).*\n)*```python\n((?:(?!```).*\n)*)", PAGE, re.MULTILINE))


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_learns(title):
    found = {}
    exec(compile(EXAMPLES[title], f"docs/image.md, {title}", "exec"), found)
    assert found["value"].isfinite() and any(p.grad is not None for g in found["optimizer"].param_groups for p in g["params"])


def test_every_method_on_images_has_a_row_and_an_example():
    from pcssl.objectives.image import ImageObjective
    from pcssl.registry import lookup, names

    methods = [name for name in names("objective") if issubclass(lookup("objective", name).factory, ImageObjective)]
    titles = {"simclr": "Projection heads", "transitive": "Transitive Invariance", "mocov3": "MoCo v3", "ijepa": "I-JEPA"}
    shown = {title.lower() for title in EXAMPLES}
    assert len(methods) >= 15 and not [name for name in methods if titles.get(name, name).lower() not in shown]
    assert set(methods) == set(re.findall(r"^\| `(\w+)` \|.*\| objectives/\w+\.py \|$", PAGE, re.MULTILINE))


def test_every_method_of_the_page_is_registered_with_its_file():
    from pcssl.registry import lookup

    rows = re.findall(r"^\| `(\w+)` \|.*\| (objectives/\w+\.py) \|$", PAGE, re.MULTILINE)
    assert len(rows) >= 3
    for name, file in rows:
        assert lookup("objective", name).factory.__module__ == f"pcssl.{file[:-3].replace('/', '.')}"
