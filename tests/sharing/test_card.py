"""A card tells what a model is, and scores of these very parameters."""

import json
import shutil

import pytest
import yaml

import tarflow_jax
from tarflow_jax.parallel.fingerprints import digest


@pytest.fixture(scope='module')
def flow(whole):
    return tarflow_jax.load(whole[0])


def card_of(flow, folder):
    return (flow.save_pretrained(folder / 'digits') / 'README.md').read_text()


def test_it_says_what_the_model_is(flow, tmp_path):
    card = card_of(flow, tmp_path)
    _, header, text = card.split('---\n', 2)
    assert yaml.safe_load(header)['library_name'] == 'tarflow_jax'
    assert '\n# digits\n' in text
    for row in (
        '| parameters | 8,640, float32 |',
        '| classes | 10 |',
        '| trained on | digits |',
        '| noise in training | Gaussian, standard deviation 0.1 |',
        '| training steps | 24 |',
    ):
        assert row in text
    assert 'flow.sample(0, 16, denoise=True)' in text
    assert 'It has not been evaluated.' in text
    assert str(tmp_path) not in card


@pytest.fixture
def evaluated(whole, tmp_path, flow):
    """A workdir with an evaluation of its parameters."""
    workdir = shutil.copytree(whole[0], tmp_path / 'run')
    evaluation = {
        'test/bits_per_dim': 2.78663,
        'test/bits_per_dim_error': 0.01183,
        'haar_frechet': 0.01375,
        'version': '0.1.0',
        'date': '2026-01-02T03:04:05+00:00',
        'params_sha256': digest(flow.params),
        'splits': {
            'num_images': {'test': 299},
            'noise': {'type': 'gaussian', 'std': 0.1},
            'num_draws': 8,
            'seed': 0,
            'dtype': 'float32',
        },
        'samples': {
            'num_samples': 5000,
            'guidance': 0.5,
            'prior_temperature': 1.0,
            'denoise_std': 0.1,
            'seed': 0,
        },
    }
    (workdir / 'evaluation.json').write_text(json.dumps(evaluation))
    return workdir


def test_it_tells_the_scores_and_how_they_were_measured(evaluated, tmp_path):
    card = card_of(tarflow_jax.load(evaluated), tmp_path)
    for words in (
        '| test/bits_per_dim | 2.7866 ± 0.0118 |',
        '| haar_frechet | 0.0138 |',
        '(299 of test), labels given, with noise (Gaussian, standard deviation 0.1), 8 draws',
        'Bits per dimension under Gaussian noise are not a code length.',
        'Samples: 5,000, guidance 0.5',
        'By tarflow_jax 0.1.0, 2026-01-02T03:04:05+00:00.',
    ):
        assert words in card


def test_scores_of_other_parameters_are_left_out(evaluated, tmp_path):
    card = card_of(tarflow_jax.load(evaluated / 'checkpoints' / '16'), tmp_path)
    assert 'The available evaluation is for other parameters' in card
    assert '2.7866' not in card


def test_scores_of_samples_from_a_file_are_left_out(evaluated, tmp_path):
    path = evaluated / 'evaluation.json'
    evaluation = json.loads(path.read_text())
    evaluation['samples'] = {'file': 'others.npz', 'num_samples': 5000}
    path.write_text(json.dumps(evaluation))
    card = card_of(tarflow_jax.load(evaluated), tmp_path)
    assert '| test/bits_per_dim | 2.7866' in card
    assert 'haar_frechet' not in card
    assert 'Samples:' not in card


@pytest.mark.parametrize('text', ['', '[]', '{"a": '])
def test_an_evaluation_that_cannot_be_read(evaluated, tmp_path, text):
    (evaluated / 'evaluation.json').write_text(text)
    assert 'It has not been evaluated.' in card_of(tarflow_jax.load(evaluated), tmp_path)
