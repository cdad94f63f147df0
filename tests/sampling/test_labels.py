"""Which labels samples have, and by which words and names these are known."""

import numpy as np
import pytest

from tarflow_jax.errors import InputError
from tarflow_jax.sampling.labels import Labels, captions, spread_labels
from tarflow_jax.sampling.write import name_of

ANIMALS = ('cat', 'dog', 'wild')


def test_labels_that_are_given_run_again_and_again():
    np.testing.assert_array_equal(spread_labels('3, 3,7', 7, 10, seed=0), [3, 3, 7, 3, 3, 7, 3])
    np.testing.assert_array_equal(spread_labels('even', 5, 3, seed=0), [0, 1, 2, 0, 1])
    assert spread_labels('even', 5, 0, seed=0) is None
    np.testing.assert_array_equal(spread_labels('3,-1', 3, 10, seed=0), [3, -1, 3])
    assert spread_labels('-1', 5, 0, seed=0) is None


@pytest.mark.parametrize(
    ('labels', 'classes'), [('3', 3), ('0', 0), ('-2', 3), ('odd', 3), ('1,,2', 3)]
)
def test_labels_that_there_are_not(labels, classes):
    with pytest.raises(InputError, match=r'there is no class|labels must be'):
        spread_labels(labels, 5, classes, seed=0)


def test_classes_have_names():
    assert Labels().numbers('labels', 'dog,2, cat', lambda: ANIMALS) == '1,2,0'
    assert Labels().numbers('labels', '0,dog', lambda: ('1', 'dog', '0')) == '0,1'  # by number
    with pytest.raises(
        InputError, match=r"no class 'dag'; did you mean 'dog'\? There are cat, dog"
    ):
        Labels().numbers('labels', 'cat,dag', lambda: ANIMALS)
    with pytest.raises(InputError, match="not known; give numbers, not 'cat'"):
        Labels().numbers('labels', 'cat', lambda: ())


@pytest.mark.parametrize('labels', ['even', 'uniform', '3,3,7', '3,-1'])
def test_numbers_need_no_data(labels):
    assert Labels().numbers('labels', labels, lambda: pytest.fail('was opened')) == labels


def test_captions_are_of_few_classes_in_turn():
    assert captions('even', 3) == ['0', '1', '2']
    assert captions('7,7,3', 10) == ['7', '7', '3']
    assert captions('1,-1', 3, ANIMALS) == [ANIMALS[1], 'no label']
    assert captions('2,0', 3, ANIMALS) == [ANIMALS[2], ANIMALS[0]]
    assert captions('even', 4, ANIMALS[:3]) == [*ANIMALS[:3], '3']
    assert captions('uniform', 3) == captions('even', 0) == captions('even', 1000) == []


def test_the_name_of_samples_says_what_made_them_others():
    settings = {'guidance': 1.0, 'labels': '3,3,7', 'denoise': False, 'num_samples': 9}
    assert name_of(settings) == 'denoise-False_guidance1_labels-3-3-7'
    assert name_of({'prior_temperature': 0.95, 'method': 'parallel'}) == 'prior_temperature0.95'
    assert name_of({'labels': '../x'}) == 'labels-..-x'
