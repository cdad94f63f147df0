"""Processes hear what the main one says, and how they differ."""

import pytest

from tarflow_jax.errors import RunError
from tarflow_jax.parallel import cluster, distributed


def test_alone_one_agrees_with_oneself():
    assert distributed.all_true(True)
    assert not distributed.all_true(False)
    cluster.abort_all(1, 'nobody hears this')


DESCRIPTION = {'config': {'seed': 0, 'model': {'width': 16}}, 'step': None, 'sizes': [7, 0.1]}


def words_of_main(process):
    return distributed.broadcast_from_main(
        {'process': process, 'text': 'ä' * (2 + process), 'none': None}
    )


def same(process):
    distributed.check_same(DESCRIPTION)


def another_step(process):
    with pytest.raises(RunError) as error:
        distributed.check_same(DESCRIPTION | {'step': 8 if process == 2 else 16})
    return error.value


def another_key(process):
    config = {'seed': 0, 'model': {'width': 16} | ({'depth': 'ä'} if process else {})}
    with pytest.raises(RunError) as error:
        distributed.check_same(DESCRIPTION | {'config': config})
    return error.value


def test_main_says_and_all_compare():
    assert words_of_main(0) == {'process': 0, 'text': 'ää', 'none': None}
    same(0)


def talk(process):
    return '\n'.join(str(say(process)) for say in (words_of_main, same, another_step, another_key))


def test_four_hear_what_the_main_one_says_and_how_they_differ(runs):
    results = runs.call_in_many(4, talk)
    assert [(result.status, result.err) for result in results] == [(0, '')] * 4
    assert {result.out for result in results} == {
        f'{words_of_main(0)}\nNone\n'
        'the processes of this run differ in step: process 0 has 16, process 2 has 8. Start all of '
        'them with the same code, the same flags and the same files.\n'
        'the processes of this run differ in config.model.depth: process 0 has none, process 1 '
        'has "\\u00e4". Start all of them with the same code, the same flags and the same files.\n'
    }
