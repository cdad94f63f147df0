import errno

import PIL
import pytest

from tarflow_jax.data.image_folder.unreadable import Unreadable


@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (PIL.UnidentifiedImageError('cannot identify image file'), 'no image'),
        (OSError('image file is truncated (3 bytes not processed)'), 'image file is truncated'),
        (ValueError('first line\nsecond'), 'first line'),
        (ValueError(), 'ValueError'),
    ],
)
def test_what_pillow_says_is_told_in_a_line(error, reason):
    file = Unreadable.because('train', 'cat/1.png', error)
    assert (file.split, file.path) == ('train', 'cat/1.png')
    assert file.reason.startswith(reason)
    assert '\n' not in file.reason


@pytest.mark.parametrize('number', [errno.EIO, errno.EACCES, errno.EMFILE])
def test_an_error_of_the_disk_is_no_bad_image(number):
    with pytest.raises(OSError, match='disk'):
        Unreadable.because('train', 'cat/1.png', OSError(number, 'of the disk'))
