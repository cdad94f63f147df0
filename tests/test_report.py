"""A report is one page that stands alone, shows what a workdir has, and says what it lacks."""

import base64
import html.parser
import io
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import jax
import numpy as np
import pytest
from flows import FLOWS
from PIL import Image
from runs import TOTAL_STEPS

from tarflow_jax import info
from tarflow_jax.configfile import ConfigFile
from tarflow_jax.report import model as models
from tarflow_jax.report import page, run
from tarflow_jax.report.scores import leading
from tarflow_jax.report.scores import scores as scores_section
from tarflow_jax.sampling import calibration_file
from tarflow_jax.sampling.calibrate import BlockReport
from tarflow_jax.sampling.parallel import Calibration

SECTIONS = [
    *('Samples', 'From noise to images', 'Training', 'Scores', 'Latents', 'Architecture'),
    *('Sampler', 'Config', 'Environment'),
]
VOID = {'meta', 'link', 'img', 'source', 'wbr', 'br'}


class Page(html.parser.HTMLParser):
    """A page as a browser sees it: its tags balance, or it is refused."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else '', data))

    def of(self, tag):
        return [text for where, text in self.texts if where == tag]

    def addresses(self):
        names = ('src', 'srcset', 'href', 'action', 'data')
        return [attributes[n] for _, attributes in self.tags for n in names if n in attributes]


@pytest.fixture(scope='module')
def reported(runs, whole, tmp_path_factory):
    """The report of a trained and evaluated run: its text, and the page."""
    workdir = tmp_path_factory.mktemp('reported') / 'tiny <run>'
    shutil.copytree(whole[0], workdir)
    runs.run(workdir, '--mode=evaluate')
    result = runs.run(workdir, '--config=', '--mode=report')
    assert str(workdir / 'report.html') in result.out
    text = (workdir / 'report.html').read_text()
    return text, Page(text)


def test_every_section_is_there_and_linked(reported):
    _, page = reported
    assert page.of('h2') == SECTIONS
    assert page.of('h1') == ['tiny <run>']
    ids = {attributes.get('id') for _, attributes in page.tags}
    links = [address[1:] for address in page.addresses() if address.startswith('#')]
    assert len(links) == len(SECTIONS)
    assert set(links) <= ids


def test_nothing_is_fetched_and_nothing_runs(reported):
    text, page = reported
    assert all(address.startswith(('#', 'data:')) for address in page.addresses())
    assert 'script' not in {tag for tag, _ in page.tags}
    assert not any(name.startswith('on') for _, attributes in page.tags for name in attributes)
    assert not re.search(r'url\(|@import', text.partition('</style>')[0])


def test_every_picture_can_be_read_and_has_words(reported):
    _, page = reported
    images = [attributes for tag, attributes in page.tags if tag == 'img']
    assert len(images) >= 8
    assert all(image['alt'] for image in images)
    uris = [image['src'] for image in images]
    uris += [attributes['srcset'] for tag, attributes in page.tags if tag == 'source']
    for uri in uris:
        kind, content = re.fullmatch(r'data:image/([a-z+]+);base64,(.+)', uri).groups()
        content = base64.b64decode(content, validate=True)
        if kind == 'svg+xml':
            root = ElementTree.fromstring(content)
            names = (name for node in root.iter() for name in node.attrib if 'href' in name)
            assert root.tag.endswith('svg')
            assert all(
                node.get(name).startswith(('#', 'data:'))
                for node in root.iter()
                for name in names
                if node.get(name)
            )
        else:
            with Image.open(io.BytesIO(content)) as picture:
                picture.load()


def test_one_picture_moves_and_has_a_still_one_for_those_who_want_no_motion(reported):
    _, page = reported
    ((still, moving),) = [
        (before[1]['srcset'], after[1]['src'])
        for before, after in zip(page.tags, page.tags[1:], strict=False)
        if before[0] == 'source'
    ]

    def read(uri):
        return Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2])))

    with read(moving) as animated_figure, read(still) as frame:
        assert animated_figure.n_frames == 1 + 2 * 4
        animated_figure.seek(animated_figure.n_frames - 1)
        np.testing.assert_array_equal(animated_figure.convert('L'), frame.convert('L'))


def test_scores_come_with_what_they_were_measured_on(reported):
    text, page = reported
    assert '299 images of digits, test split' in page.of('th')
    assert 'All settings of the evaluation' in page.of('summary')
    assert f'step {TOTAL_STEPS}' in text
    assert 'not a code length' in text


def test_an_evaluation_has_its_command_and_what_was_warned_of(tmp_path):
    scores = {
        'fid': 3.0,
        'samples': {'num_samples': 4, 'warnings': ['fid of 4 samples: <few>']},
        'unfinished': ['recall'],
        'command': 'tarflow --mode=evaluate --config.evaluate.num_samples=4',
    }
    (tmp_path / 'evaluation.json').write_text(json.dumps(scores))
    section = ''.join(scores_section(tmp_path, 'tarflow --mode=evaluate').parts)
    assert 'fid of 4 samples: &lt;few&gt;' in section
    assert 'Not yet computed: recall. The same command resumes.' in section
    assert f'<code>{scores["command"]}</code>' in section
    assert 'stopped before recall' in info.describe_workdir(tmp_path)['evaluation']


@pytest.mark.parametrize(
    ('about', 'words', 'first'),
    [
        ({'step': 24, 'params_sha256': 'a'}, 'Of step 24, on', ['−1.000', '3.00', '25.0%']),
        ({'step': 24, 'params_sha256': 'b'}, 'Of step 24, on', []),
        ({'checkpoint': 'b.pth', 'step': None}, 'Of b.pth, on', []),
        ({'samples': {'file': 'a.npz', 'num_samples': 4}}, 'Of the samples in a.npz, on', []),
    ],
    ids=str,
)
def test_the_scores_on_top_are_of_the_parameters_of_the_page(tmp_path, about, words, first):
    scores = {'test/nats_per_dim': -1.0, 'test/accuracy': 0.25, 'train/nats_per_dim': -2.0}
    scores |= {'fid': 3.0, 'date': '2026-11-29', 'samples': {'num_samples': 4}, **about}
    (tmp_path / 'evaluation.json').write_text(json.dumps(scores))
    assert [value for _, value in leading(tmp_path, 'a')] == first
    assert words in ''.join(scores_section(tmp_path, 'tarflow --mode=evaluate').parts)
    subject = words.removeprefix('Of ').partition(',')[0]
    assert f'of {subject}, 2026' in info.describe_workdir(tmp_path)['evaluation']


@pytest.mark.parametrize('params_sha256', ['a', 'b', None])
def test_a_calibration_of_other_parameters_is_told(tmp_path, params_sha256):
    times = {1: 1.0, 4: 0.5, 8: 0.4}
    report = BlockReport(window=4, times=times, sweeps={4: 9}, errors=[1.0], settled=[0])
    calibration = Calibration.default(FLOWS['conditional'].token_flow(), window=1)
    identity = dict(tolerance=0.1, params_sha256='a', device='cpu', batch_size=4)
    calibration_file.write(tmp_path / calibration_file.FILE, calibration, identity, [report])
    section = ''.join(run.sampler(tmp_path, 'tarflow', params_sha256).parts)
    assert 'take 50% of the time' in section  # with the window that was chosen
    assert ('made for other parameters' in section) == (params_sha256 == 'b')


def test_the_config_names_what_differs_from_base(reported):
    text, _ = reported
    differences, _, every_key = text.partition('id="config"')[2].partition('<details>')
    plain = re.sub('<wbr>', '', differences)
    assert re.search(r'model.width</th><td>16</td><td>768</td>', plain)
    assert 'weight_decay' not in plain
    assert 'data.dir' not in plain
    assert 'weight_<wbr>decay' in every_key


def test_what_is_missing_is_named_with_its_command(runs, whole, tmp_path):
    """A workdir with nothing but its config, and one that is damaged, have a page, too."""
    workdir = tmp_path / 'run'
    workdir.mkdir()
    shutil.copy(whole[0] / 'config.json', workdir)
    (workdir / 'evaluation.json').write_text('{')
    (workdir / 'calibration.npz').write_text('nothing')
    runs.run(workdir, '--config=', '--mode=report')
    text = (workdir / 'report.html').read_text()
    assert 'Architecture' in Page(text).of('h2')
    assert {
        f'--workdir={workdir} --mode={mode}' in text for mode in ('train', 'evaluate', 'calibrate')
    } == {True}
    assert 'evaluation.json is damaged' in text
    assert 'calibration.npz is damaged' in text
    assert 'has no checkpoint yet' in text


def test_a_page_of_another_workdirs_checkpoint_names_it(runs, whole, tmp_path):
    result = runs.run(tmp_path, '--config=', '--mode=report', f'--checkpoint={whole[0]}')
    assert 'samples for the report' in result.out
    commands = re.findall(r'<code>(.*?)</code>', (tmp_path / 'report.html').read_text())
    assert commands == [
        f'python -m tarflow_jax.main --workdir={tmp_path} --checkpoint={whole[0]} --mode={mode}'
        for mode in ('evaluate', 'calibrate')
    ]


def test_images_that_are_not_on_this_machine_are_missed(runs, whole, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(whole[0], workdir)
    config = json.loads((workdir / 'config.json').read_text())
    config['data']['name'] = 'cifar10'
    config['mesh'] = {'data': 16, 'fsdp': 16, 'tensor': 1}  # of the machine that trained it
    (workdir / 'config.json').write_text(json.dumps(config))
    runs.run(workdir, '--config=', '--mode=report')
    page = Page((workdir / 'report.html').read_text())
    assert page.of('h2') == SECTIONS
    assert any('no images to map to latents' in text and 'cifar10' in text for text in page.of('p'))


def test_a_folder_without_a_run_has_no_page(runs, tmp_path):
    result = runs.run(tmp_path, '--config=', '--mode=report', status=2)
    assert 'config.json' in result.err
    assert not (tmp_path / 'report.html').exists()


@pytest.mark.parametrize('name', FLOWS)
def test_images_are_counted_in_whole_rows_of_classes(name):
    model = FLOWS[name]
    count = models.count_images(model)
    labels = models.spread_labels(count, model.num_classes)
    assert models.MIN_IMAGES <= count <= models.MAX_IMAGES
    if model.num_classes:
        assert set(np.bincount(labels, minlength=model.num_classes)) == {count // model.num_classes}


def test_a_single_class_is_not_guided():
    config = ConfigFile().parse('digits')
    config.model.update(num_classes=1, width=8, head_dim=4, num_blocks=2, layers_per_block=1)
    experiment = models.open_experiment(config)
    params = experiment.model.init_params(jax.random.key(0))
    assert models.draw(experiment, params).guided is None


def test_of_many_classes_some_are_drawn():
    labels = models.spread_labels(10, 1000)
    assert labels[0] == 0
    assert len(set(labels)) == 10
    assert labels[-1] == 900


def test_texts_are_escaped():
    whole = page.page(
        '<b>',
        '<i>',
        page.facts([('<', '>')]),
        [page.Section('a & b', [page.paragraph('<script>')])],
    )
    assert '<script>' not in whole
    assert Page(whole).of('h2') == ['a & b']


def test_reports_of_a_calibration_are_read_as_they_were_written(tmp_path, one_device):
    report = BlockReport(window=4, times={1: 1.0, 4: 0.5}, sweeps={4: 9}, errors=[1.0], settled=[0])
    calibration = Calibration.default(FLOWS['conditional'].token_flow(), window=1)
    calibration_file.write(tmp_path / 'c.npz', calibration, {'tolerance': 0.1}, [report])
    assert calibration_file.read(tmp_path / 'c.npz')[1:] == ([report], {'tolerance': 0.1})
