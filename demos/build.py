"""Builds notebooks, with their outputs, from the scripts beside this file.

    python demos/build.py                  # all of them, one after the other
    python demos/build.py digits           # one

Needs the extra: pip install -e '.[demos]'. A notebook runs in this folder, as if opened there.
"""

import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
NAMES = ('digits', 'published_model', 'likelihood', 'your_images', 'scale')
KERNEL = {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}
TIMEOUT = 1800  # seconds of a cell


def read_script(name: str) -> nbformat.NotebookNode:
    """The notebook of a script, without outputs."""
    notebook = jupytext.read(FOLDER / f'{name}.py', fmt='py:percent')
    notebook.metadata = {'kernelspec': KERNEL, 'language_info': {'name': 'python'}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f'{name}-{number}'  # the same every time
        cell.metadata = {}
    return notebook


def build(name: str) -> None:
    """Runs a notebook and writes it with its outputs."""
    notebook = read_script(name)
    client = NotebookClient(
        *(notebook, None),
        timeout=TIMEOUT,
        coalesce_streams=True,
        record_timing=False,
        resources={'metadata': {'path': str(FOLDER)}},
    )
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            cell.outputs = [_of_no_machine(o) for o in cell.outputs if o.get('name') != 'stderr']
    notebook.metadata['language_info'] = {'name': 'python'}  # without the version
    nbformat.write(notebook, FOLDER / f'{name}.ipynb')


def _of_no_machine(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An output with file names relative to this folder."""
    if output.output_type == 'stream':
        output.text = output.text.replace(f'{FOLDER.resolve()}/', '')
    return output


if __name__ == '__main__':
    for name in sys.argv[1:] or NAMES:
        build(name)
