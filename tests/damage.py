"""What can happen to the folder of a checkpoint."""

import os
import shutil


def data_file(folder):
    """The file with an item's arrays: the largest one."""
    return max((folder / 'ocdbt.process_0' / 'd').iterdir(), key=lambda path: path.stat().st_size)


def truncate_arrays(folder):
    for path in (folder / 'params').rglob('d/*'):
        os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(folder):
    path = data_file(folder / 'params')
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty_the_folder(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def delete_an_item(folder):
    shutil.rmtree(folder / 'params')


def delete_the_fingerprints(folder):
    shutil.rmtree(folder / 'fingerprints')


def null_the_fingerprints(folder):
    (folder / 'fingerprints' / 'metadata').write_text('null')


def list_the_fingerprints(folder):
    (folder / 'fingerprints' / 'metadata').write_text('[["params", 1]]')


def nest_the_fingerprints(folder):
    (folder / 'fingerprints' / 'metadata').write_text('[' * 100_000)


def rename_from_another_step(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / '20', folder)


def break_the_fingerprints(folder):
    (folder / 'fingerprints' / 'metadata').write_text('{"params": ')
