"""`--mode=evaluate` of samples, and `--mode=prepare_fid`, by the command line."""

import datetime
import json
import shutil
import signal

import numpy as np
import pytest
from golden.inception import recipe
from runs import TIMEOUT, files_in

from tarflow_jax.evaluation import inception_weights, prepare_fid, references
from tarflow_jax.formats import torchfile
from tarflow_jax.sampling.labels import spread_labels

HAAR = '--config.evaluate.metrics=haar_frechet,haar_precision,haar_recall'
INCEPTION = '--config.evaluate.metrics=fid,sfid,inception_score,precision,recall'
FEW = '--config.evaluate.num_samples=200'


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A file of random weights of the Inception network."""
    path = tmp_path_factory.mktemp('weights') / 'random.pth'
    shapes = inception_weights.tensor_shapes()
    tensors = {name: recipe.tensor(name, shape) for name, shape in shapes.items()}
    torchfile.write_state_dict(path, tensors)
    return path


@pytest.fixture(scope='module')
def evaluated(runs, whole, tmp_path_factory):
    """The workdir in which samples were evaluated, and what was printed."""
    workdir = tmp_path_factory.mktemp('evaluated')
    flags = ['--mode=evaluate', f'--checkpoint={whole[0]}', HAAR, FEW]
    return workdir, runs.run(workdir, *flags)


def read(workdir):
    return json.loads((workdir / 'evaluation.json').read_text())


def test_samples_are_drawn_measured_and_kept(runs, whole, evaluated):
    workdir, result = evaluated
    evaluation = read(workdir)
    assert evaluation['haar_frechet'] > 0
    assert 0 <= evaluation['haar_precision'] <= 1
    assert 0 <= evaluation['haar_recall'] <= 1
    assert f'{"haar_frechet":32} {evaluation["haar_frechet"]:.4f}\n' in result.out
    told = evaluation['samples']
    assert (told['num_samples'], told['labels'], told['seed']) == (200, 'uniform', 0)
    assert (told['quantization'], told['redrawn']) == ('truncate', 0)
    reference = told['references']['haar']
    assert (reference['dataset'], reference['split']) == ('digits', 'train')
    assert reference['num_images'] == 1498
    assert reference['path'] == f'{runs.data_dir}/references/digits-train-haar.npz'
    assert len(reference['sha256']) == len(evaluation['params_sha256']) == 64
    assert [str(path) for path in files_in(workdir)] == [
        *('evaluation.json', 'samples/evaluated.npz')
    ]
    with np.load(workdir / 'samples' / 'evaluated.npz') as arrays:
        assert arrays['arr_0'].shape == (200, 8, 8, 1)
        assert arrays['arr_0'].dtype == np.uint8
        labels = spread_labels('uniform', 200, 10, seed=0)
        np.testing.assert_array_equal(arrays['arr_1'], labels)


def test_samples_from_a_file_score_the_same_and_need_no_model(runs, evaluated, tmp_path):
    file = evaluated[0] / 'samples' / 'evaluated.npz'
    for batch_size, devices in (7, 1), (64, 8):
        workdir = tmp_path / f'{devices}'
        runs.run(
            *(workdir, '--mode=evaluate', f'--config.evaluate.samples={file}', HAAR),
            f'--config.evaluate.batch_size={batch_size}',
            devices=devices,
        )
        expected, found = read(evaluated[0]), read(workdir)
        for name in 'haar_frechet', 'haar_precision', 'haar_recall':
            assert found[name] == pytest.approx(expected[name], rel=1e-5)
        assert found['samples']['file'] == str(file)
        assert 'checkpoint' not in found


def test_many_devices_and_processes_draw_and_measure_the_same(runs, whole, evaluated, tmp_path):
    """Two processes and eight devices; the likelihoods of both splits, too."""
    metrics = '--config.evaluate.metrics=bits_per_dim,haar_frechet,haar_recall'
    flags = ['--mode=evaluate', f'--checkpoint={whole[0]}', metrics, FEW]
    flags.append('--config.evaluate.splits=train[:64],test')
    alone, eight, two = (tmp_path / name for name in ('alone', 'eight', 'two'))
    runs.run(alone, *flags, '--config.evaluate.batch_size=100')
    runs.run(eight, *flags, '--config.evaluate.batch_size=64', devices=8)
    runs.run_many(2, two, *flags, '--config.evaluate.batch_size=256')
    expected = read(alone)
    assert expected['haar_frechet'] == read(evaluated[0])['haar_frechet']
    for workdir in eight, two:
        for name in 'train[:64]/bits_per_dim', 'test/bits_per_dim':
            assert read(workdir)[name] == pytest.approx(expected[name], abs=1e-6)
        file = workdir / 'samples' / 'evaluated.npz'
        with np.load(file) as ours, np.load(alone / 'samples' / 'evaluated.npz') as theirs:
            difference = ours['arr_0'].astype(int) - theirs['arr_0']  # rounding near a level's edge
            assert np.abs(difference).max() <= 1
            assert np.count_nonzero(difference) < 0.001 * difference.size
            np.testing.assert_array_equal(ours['arr_1'], theirs['arr_1'])

    given = [f'--config.evaluate.samples={file}', HAAR, '--config.evaluate.batch_size=64']
    runs.run_many(2, tmp_path / 'given', '--mode=evaluate', *given)
    for name in 'haar_frechet', 'haar_recall':
        assert read(tmp_path / 'given')[name] == pytest.approx(read(two)[name], rel=1e-6)


def test_every_metric_of_inception(runs, whole, weights, tmp_path):
    """On a set so small that the network has little to do."""
    flags = [
        *('--config.data.train_split=test[:4]', f'--checkpoint={whole[0]}'),
        *(f'--config.evaluate.inception_weights={weights}', INCEPTION),
        *('--config.evaluate.num_samples=4', '--config.evaluate.batch_size=4'),
        '--config.sample.batch_size=4',
    ]
    made = runs.run(tmp_path, '--mode=prepare_fid', *flags).out
    path = runs.data_dir / 'references' / 'digits-test_to_4-torch-fidelity.npz'
    images = '4 images of digits/test[:4]'
    assert made == (
        f'Computing reference statistics of {images}, only once.\n'
        f'{path}: reference statistics of {images}.\n'
    )
    reference = references.read(path)
    assert reference.rows['pool'].shape == (4, 2048)
    again = runs.run(tmp_path, '--mode=prepare_fid', *flags).out
    assert again == f'{path}: reference statistics already exist.\n'

    result = runs.run(tmp_path, '--mode=evaluate', *flags)
    assert 'fid against 4 images with 2048 features' in result.err
    assert 'fid of 4 samples with 2048 features: their covariance is singular' in result.err
    evaluation = read(tmp_path)
    for name in 'fid', 'sfid':
        assert evaluation[name] > 0
    assert evaluation['inception_score'] >= 1
    assert evaluation['samples']['preprocessing'] == 'torch-fidelity'
    assert len(evaluation['samples']['inception_sha256']) == 64
    assert evaluation['samples']['references']['inception']['sha256'] == reference.sha256

    other = '--config.evaluate.preprocessing=clean-fid'
    line = runs.refused(
        tmp_path, '--mode=evaluate', *flags, other, f'--config.evaluate.reference={path}'
    )
    assert 'preprocessing is torch-fidelity in the reference, clean-fid in this evaluation' in line
    theirs = tmp_path / 'theirs.npz'
    np.savez(theirs, mu=np.zeros(2048), sigma=np.eye(2048))
    line = runs.refused(
        tmp_path, '--mode=evaluate', *flags, f'--config.evaluate.reference={theirs}'
    )
    assert 'has no spatial, no images' in line


def test_a_signal_ends_the_making_of_a_reference(runs, tmp_path):
    flags = ['--mode=prepare_fid', HAAR, '--config.data.train_split=train[:300]']
    path = runs.data_dir / 'references' / 'digits-train_to_300-haar.npz'
    for number in signal.SIGTERM, signal.SIGINT:
        moment = 'call', 'evaluation/quality.py measure_split', 1, number
        result = runs.run(tmp_path, *flags, status=128 + number, at=moment)
        words = f'stopped by {number.name}. The same command starts again.'
        assert result.err == f'error: {words}\n'
        assert not list(path.parent.glob(f'*{path.name}*'))
    runs.run(tmp_path, *flags)
    assert references.read(path).metadata['num_images'] == 300


# Found out before the first step of a training, too.
REFUSED_BY_TRAINING = {
    '--config.evaluate.metrics=foo': 'evaluate.metrics must name some of',
    '--config.evaluate.preprocessing=none': 'evaluate.preprocessing must be one of',
    '--config.evaluate.splits=valid': "no split 'valid' (evaluate.splits); it has test",
    '--config.evaluate.num_samples=3': 'evaluate.num_samples must be at least 4 for haar_frechet',
}


@pytest.mark.parametrize('flag', REFUSED_BY_TRAINING)
def test_refused_by_training(runs, tmp_path, flag):
    metrics = [] if 'metrics' in flag else [f'{HAAR},bits_per_dim']
    assert REFUSED_BY_TRAINING[flag] in runs.refused(tmp_path, *metrics, flag)


@pytest.mark.parametrize('mode', ['sample', 'evaluate'])
def test_what_cannot_be_written_or_held_is_found_before_sampling(runs, whole, tmp_path, mode):
    flags = [f'--mode={mode}', f'--checkpoint={whole[0]}', HAAR]
    few = f'--config.{mode}.num_samples=4'
    (tmp_path / 'file').touch()
    line = runs.refused(tmp_path / 'file', *flags, few)
    assert f'{tmp_path}/file' in line
    assert 'cannot be written to' in line
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'samples').touch()
    line = runs.refused(tmp_path / 'run', *flags, few)
    assert f'{tmp_path}/run/samples cannot be written to' in line


def test_more_samples_than_fit_are_refused_before_any_is_drawn(runs, whole, tmp_path):
    flags = ['--mode=evaluate', f'--checkpoint={whole[0]}', HAAR]
    line = runs.refused(tmp_path, *flags, '--config.evaluate.num_samples=1000000000')
    assert 'evaluate.num_samples=1000000000 does not fit on this machine' in line
    assert 'Choose at most ' in line


def test_a_reference_that_no_metric_takes(runs, whole, tmp_path):
    flags = ['--mode=evaluate', f'--checkpoint={whole[0]}', HAAR, FEW]
    line = runs.refused(tmp_path, *flags, '--config.evaluate.reference=/does/not/exist.npz')
    assert 'evaluate.reference=/does/not/exist.npz: there is no such file' in line
    path = tmp_path / 'theirs.npz'
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
    result = runs.run(tmp_path / 'run', *flags, f'--config.evaluate.reference={path}')
    assert f'evaluate.reference={path} is for fid, sfid, precision and recall' in result.err


def test_an_evaluation_tells_what_it_is_of(evaluated):
    evaluation = read(evaluated[0])
    assert evaluation['step'] == 24
    date = datetime.datetime.fromisoformat(evaluation['date'])
    assert datetime.timedelta() < datetime.datetime.now(datetime.UTC) - date
    assert date.utcoffset() == datetime.timedelta()


def test_the_history_has_every_evaluation_once_and_each_on_its_line(runs, whole, tmp_path):
    """Of a run killed after it had added one, and of one killed while it did."""
    flags = [
        '--mode=evaluate',
        f'--checkpoint={whole[0]}',
        '--config.evaluate.metrics=bits_per_dim',
    ]
    runs.run(tmp_path, *flags)
    first = read(tmp_path)
    moment = 'os.rename', '.evaluation.json.', 1, signal.SIGKILL
    for _ in range(2):
        runs.run(tmp_path, *flags, status=-signal.SIGKILL, at=moment)
    history = tmp_path / 'evaluations.jsonl'
    assert [json.loads(line) for line in history.read_text().splitlines()] == [first]

    cut = history.read_text()[:50]
    history.write_text(cut)
    runs.run(tmp_path, *flags)
    damaged, line = history.read_text().splitlines()
    assert (damaged, json.loads(line)) == (cut, first)
    assert not unfinished_in(tmp_path)


def test_one_reference_for_each_part_of_a_split():
    names = ['train[5%:]', 'train[:5%]', 'train[5:]', 'train[:5]', 'train', 'a/b.npz', 'c/b.npz']
    assert len({prepare_fid.file_name(name) for name in names}) == len(names)
    assert prepare_fid.file_name('train[5%:]') == 'train_5pct_to'
    assert prepare_fid.file_name('photos/64') == 'photos_64'


REFUSED = {
    '--config.evaluate.labels=odd': 'evaluate.labels must be one of even, uniform',
    '--config.evaluate.quantization=floor': 'evaluate.quantization must be one of truncate, round',
    '--config.evaluate.num_samples=0': 'evaluate.num_samples must be at least 1; got 0',
    '--config.evaluate.num_samples=3': 'evaluate.num_samples must be at least 4 for haar_frechet',
    '--config.evaluate.samples=none.npz': 'none.npz',
    '--config.evaluate.samples=digits': 'evaluate.samples=digits must be a file .npz of images',
    '--config.evaluate.metrics=recal': "got recal; did you mean 'recall'?",
    '--config.evaluate.metrics=iw_bits_per_dim': "needs noise.type='uniform'",
    '--config.evaluate.splits=valid': "no split 'valid' (evaluate.splits); it has test",
    '--config.data.test_split=valid': "no split 'valid' (data.test_split); it has test",
    '--config.data.name=photos/8': 'the images of photos/8 have the shape (8, 8, 3), the model',
}


@pytest.mark.parametrize('flag', REFUSED)
def test_refused(runs, whole, flag):
    metrics = [] if 'metrics' in flag else [f'{HAAR},bits_per_dim']
    line = runs.refused(whole[0], '--mode=evaluate', *metrics, flag)
    assert REFUSED[flag] in line


def test_weights_that_are_not_there(runs, whole, tmp_path):
    """Neither on the disk nor, behind a proxy that is none, on the network."""
    flags = ['--mode=evaluate', '--config.evaluate.metrics=fid']
    line = runs.refused(whole[0], *flags, '--config.evaluate.inception_weights=/nowhere/x.pth')
    assert 'there is no file /nowhere/x.pth' in line
    named = tmp_path / 'weights-inception-2015-12-05-6726825d.pth'
    named.write_bytes(b'not these')
    line = runs.refused(whole[0], *flags, f'--config.evaluate.inception_weights={named}')
    assert f'{named} is damaged: by its name its SHA-256 begins with 6726825d' in line

    nowhere = {'TARFLOW_CACHE': f'{tmp_path}/cache', 'https_proxy': 'http://127.0.0.1:9'}
    command = [f'--config={runs.config}', f'--workdir={whole[0]}', *flags]
    with runs.start_python(*command, **nowhere) as process:
        _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2
    for words in (
        'weights-inception-2015-12-05-6726825d.pth',
        f'{tmp_path}/cache',
        'inception_weights',
    ):
        assert words in err
    assert 'Traceback' not in err


def test_an_evaluation_keeps_the_one_before(runs, whole, tmp_path):
    metric = '--config.evaluate.metrics='
    flags = ['--mode=evaluate', f'--checkpoint={whole[0]}']
    runs.run(tmp_path, *flags, f'{metric}nats_per_dim')
    before = read(tmp_path)
    runs.run(tmp_path, *flags, f'{metric}bits_per_dim')
    assert 'test/nats_per_dim' not in read(tmp_path)
    (line,) = (tmp_path / 'evaluations.jsonl').read_text().splitlines()
    assert json.loads(line) == before


TWENTIETH_BATCH = 'call', 'evaluation/sample_store.py add', 20
STOPPED = 'error: stopped by {}. The same command resumes.\n'


def unfinished_in(workdir):
    return [path.name for path in workdir.rglob('*.unfinished')]


def test_an_interrupted_evaluation_resumes_and_gives_the_same(runs, whole, tmp_path):
    """Stopped in the splits, then before and among the samples, killed as their file is made."""
    flags = [
        *('--mode=evaluate', f'--checkpoint={whole[0]}', f'{HAAR},bits_per_dim'),
        *('--config.evaluate.splits=test,test[:32]', '--config.evaluate.num_samples=400'),
    ]
    never, workdir = tmp_path / 'never', tmp_path / 'stopped'
    runs.run(never, *flags)
    expected = read(never)

    moment = 'open', 'digits-train-haar.npz', 1, signal.SIGTERM
    result = runs.run(workdir, *flags, status=143, at=moment)
    assert (result.out, result.err) == ('', STOPPED.format('SIGTERM'))
    assert not (workdir / 'evaluation.json').exists()

    moment = 'os.rename', '.evaluation.json.', 1, signal.SIGHUP
    result = runs.run(workdir, *flags, status=129, at=moment)
    assert result.err == STOPPED.format('SIGHUP')
    metrics = ['haar_frechet', 'haar_precision', 'haar_recall']
    assert read(workdir)['unfinished'] == ['test[:32]/bits_per_dim', *metrics]
    assert read(workdir)['test/bits_per_dim'] == expected['test/bits_per_dim']
    assert not any(key.startswith('test[:32]') for key in read(workdir))

    result = runs.run(workdir, *flags, status=130, at=(*TWENTIETH_BATCH, signal.SIGINT))
    assert result.err == STOPPED.format('SIGINT')
    (folder,) = (workdir / 'samples').iterdir()
    count = sum(len(np.load(part)) for part in folder.glob('*.npy'))
    assert 0 < count < 400
    two = shutil.copytree(workdir, tmp_path / 'two')

    moment = 'os.rename', '.evaluated.npz.', 1, signal.SIGKILL
    result = runs.run(workdir, *flags, status=-signal.SIGKILL, at=moment)
    assert result.out.startswith(f'{count:,} samples are drawn already.\n')
    assert len(unfinished_in(workdir)) == 1

    result = runs.run(workdir, *flags)
    assert result.out.startswith('400 samples are drawn already.\n')
    again = read(workdir)
    assert again.pop('date') >= expected.pop('date')
    assert again.pop('command') == expected.pop('command').replace(str(never), str(workdir))
    assert again == expected
    content = (workdir / 'samples' / 'evaluated.npz').read_bytes()
    assert content == (never / 'samples' / 'evaluated.npz').read_bytes()
    assert [str(path) for path in files_in(workdir)] == [
        *('evaluation.json', 'samples/evaluated.npz')
    ]

    main, second = runs.run_many(2, two, *flags)
    assert main.out.startswith(f'{count:,} samples are drawn already.\n')
    assert main.err == second.out == second.err == ''
    for name in 'haar_frechet', 'haar_recall', 'test/bits_per_dim':
        assert read(two)[name] == pytest.approx(expected[name], rel=1e-4)
    assert [str(path) for path in files_in(two)] == ['evaluation.json', 'samples/evaluated.npz']


def test_samples_and_scores_of_another_evaluation_are_not_taken_over(runs, whole, tmp_path):
    """Of other samples, that is: those of fewer or larger batches are the same."""
    flags = ['--mode=evaluate', f'--checkpoint={whole[0]}', f'{HAAR},bits_per_dim', FEW]
    moment = 'os.rename', '/samples/.evaluated.npz.', 1, signal.SIGTERM
    result = runs.run(tmp_path, *flags, status=143, at=moment)
    assert result.err == STOPPED.format('SIGTERM')
    assert not unfinished_in(tmp_path)
    before = read(tmp_path)

    result = runs.run(tmp_path, *flags, '--config.sample.seed=1')
    assert 'already' not in result.out
    assert (
        f'evaluation in {tmp_path}/evaluation.json are computed again: config_sha256' in result.err
    )
    (line,) = (tmp_path / 'evaluations.jsonl').read_text().splitlines()
    assert json.loads(line) == before
    assert len(list((tmp_path / 'samples').glob('drawn-*'))) == 1

    for number in 100, 240:  # a smaller evaluation leaves what a larger one has drawn
        change = ('--config.sample.batch_size=40', f'--config.evaluate.num_samples={number}')
        result = runs.run(tmp_path, *flags, HAAR, *change)
        assert '200 samples are drawn already.\n' in result.out
    assert read(tmp_path)['samples']['num_samples'] == 240
    assert not list((tmp_path / 'samples').glob('drawn-*'))


def test_images_without_labels_are_no_test_of_a_classifier(runs, whole, tmp_path):
    images = np.zeros((4, 8, 8, 1), np.uint8)
    np.savez(tmp_path / 'unlabelled.npz', images=images)
    flags = ['--mode=evaluate', '--config.evaluate.metrics=accuracy']
    flags.append('--config.evaluate.splits=train')
    line = runs.refused(whole[0], *flags, f'--config.data.name={tmp_path}/unlabelled.npz')
    assert 'has no labels, and the model is for 10 classes' in line
    np.savez(tmp_path / 'some.npz', images=images, labels=np.array([0, 1, -1, 3]))
    line = runs.run(
        tmp_path / 'run',
        *(*flags, f'--checkpoint={whole[0]}', f'--config.data.name={tmp_path}/some.npz'),
        status=2,
    ).err
    assert 'accuracy needs labels, and some images have none' in line


def test_a_reference_of_other_images_is_rebuilt(runs, whole, evaluated, tmp_path):
    path = runs.data_dir / 'references' / 'digits-train-haar.npz'
    stale = references.read(path)
    stale.metadata['fingerprint'] = 'of other images'
    references.write(path, stale)
    flags = ['--mode=evaluate', f'--checkpoint={whole[0]}', HAAR, FEW]
    result = runs.run(tmp_path, *flags)
    assert f'{path} was made with another fingerprint and is rebuilt' in result.err
    assert read(tmp_path)['haar_frechet'] == read(evaluated[0])['haar_frechet']


def test_a_signal_to_the_second_of_two_stops_both(runs, whole, tmp_path):
    flags = [
        *('--mode=evaluate', f'--checkpoint={whole[0]}', HAAR),
        *('--config.evaluate.num_samples=1000', '--config.evaluate.save_samples=False'),
    ]
    at = {1: (*TWENTIETH_BATCH, signal.SIGTERM)}
    results = runs.run_many(2, tmp_path, *flags, status=143, at=at)
    assert all('stopped by SIGTERM. The same command resumes.' in result.err for result in results)
    assert not unfinished_in(tmp_path)
    result = runs.run(tmp_path, *flags)
    assert 'samples are drawn already' in result.out
    assert [str(path) for path in files_in(tmp_path)] == ['evaluation.json']
