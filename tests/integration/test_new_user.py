"""The notebook of the docs, from a folder of pictures to an export: what it shows, and the model in another process."""

import json
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

import statten

NOTEBOOK = Path(__file__).parents[2] / "docs" / "own_data.ipynb"
CLASSES = ["Zinnia", "aster", "oxeye daisy"]
"""Names that are sorted otherwise than people, or a dictionary, would."""


def test_the_notebook_is_kept_without_outputs():
    """Those of one machine would be noise in every change."""
    cells = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    assert cells and all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_from_pictures_to_a_model_elsewhere(work):
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(work)}}).execute()
    shown = [output.data["text/html"] for cell in notebook.cells for output in cell.get("outputs", [])
             if output.output_type == "execute_result" and "text/html" in output.data]  # fmt: skip
    for found, words in zip(shown, (["first", "3 of 3"], ["sizes"], ["best", "5 of 5"], ["top-1"], CLASSES), strict=True):
        assert "<table" in found and all(word in found for word in words), found

    (evaluation,) = (work / "runs" / "best" / "evaluations").glob("*/report.json")
    report = json.loads(evaluation.read_text())
    assert report["top1"] > 95 and report["class_names"] == CLASSES
    assert {row["name"]: row["samples"] for row in report["classes"]} == dict.fromkeys(CLASSES, 20)
    for target in ("first", "sizes", "best"):
        found = statten.load_model(target).predict("new")
        assert len(found) == 9 and sum(answer.name in answer.source for answer in found) >= 8, found

    lines = notebook.cells[-2].outputs[-1].text.strip().splitlines()
    code = "\n".join([
        *lines,
        "import torch, pathlib; from PIL import Image; from timm.data import create_transform, resolve_model_data_config",
        "transform, names = create_transform(**resolve_model_data_config(model)), model.pretrained_cfg['label_names']",
        "for path in pathlib.Path('new').iterdir():",
        "    with torch.inference_mode():",
        "        print(path.name, '=', names[int(model.eval()(transform(Image.open(path))[None]).argmax())])",
    ])  # fmt: skip
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    here = {answer.source.removeprefix("new/"): answer.name for answer in found}
    assert dict(line.split(" = ") for line in elsewhere) == here and len(here) == 9
