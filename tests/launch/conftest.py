"""The scripts of launch/ beside programs that stand in for gcloud, kubectl, sbatch and others."""

import dataclasses
import json
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch'
TIMEOUT = 200

# Records what it was asked, and answers with the first line whose text is in the arguments; of
# several answers in that line each is given once, the last one again and again.
STAND_IN = """#!PYTHON -SE
import fcntl, json, os, sys
name, argv = os.path.basename(sys.argv[0]), sys.argv[1:]
folder = os.environ['STAND_INS']
stdin = sys.stdin.read() if name == 'kubectl' else ''
status = 0
with open(folder + '/record', 'a+') as record:
    fcntl.flock(record, fcntl.LOCK_EX)
    record.write(json.dumps({'argv': [name, *argv], 'stdin': stdin}) + '\\n')
    with open(folder + '/answers') as file:
        answers = json.load(file)
    for text, replies in answers.items():
        if text in ' '.join([name, *argv]):
            status, out = replies.pop(0) if len(replies) > 1 else replies[0]
            print(out, file=sys.stderr if status else sys.stdout)
            break
    with open(folder + '/answers', 'w') as file:
        json.dump(answers, file)
sys.exit(status)
"""


@dataclasses.dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def commands(self):
        """What a dry run printed, as the arguments a shell makes of it."""
        return [shlex.split(line) for line in self.out.splitlines()]


class Launch:
    """A copy of launch/ in a checkout of its own, and a PATH with the programs that stand in."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.checkout = folder / 'check out'
        shutil.copytree(LAUNCH, self.checkout / 'launch')
        self.programs = folder / 'programs'
        self.programs.mkdir()
        (folder / 'record').touch()
        self.answer({})
        self.environment = {
            'PATH': f'{self.programs}:/usr/bin:/bin',
            'HOME': str(folder / 'home'),
            'TMPDIR': str(folder),
            'STAND_INS': str(folder),
            'POLL': '0',
        }
        (folder / 'home').mkdir()

    def add(self, *names, text=STAND_IN, where=None):
        for name in names:
            program = (where or self.programs) / name
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(text.replace('PYTHON', sys.executable))
            program.chmod(0o755)

    def answer(self, answers):
        """`{'describe': [(0, 'ACTIVE'), ...]}`: status and words for commands with that text."""
        (self.folder / 'answers').write_text(json.dumps(answers))

    def start(self, script, *arguments, stdin=subprocess.DEVNULL, **environment):
        return subprocess.Popen(
            [self.checkout / 'launch' / script, *map(str, arguments)],
            cwd=self.checkout,
            env=self.environment | environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process) -> Result:
        out, err = process.communicate(timeout=TIMEOUT)
        return Result(process.returncode, out, err)

    def run(self, script, *arguments, status=0, **environment) -> Result:
        result = self.finish(self.start(script, *arguments, **environment))
        assert result.status == status, result
        return result

    def refused(self, script, *arguments, **environment) -> str:
        """The one line with which a script refuses; nothing was asked of any program."""
        result = self.run(script, *arguments, status=2, **environment)
        assert result.out == ''
        assert result.err.startswith(f'{script}: ')
        assert result.err.count('\n') == 1, result.err
        assert self.recorded() == []
        return result.err

    def records(self):
        """What was asked since the last call, in order."""
        record = self.folder / 'record'
        records = [json.loads(line) for line in record.read_text().splitlines()]
        record.write_text('')
        return records

    def recorded(self):
        """The arguments of `records`."""
        return [record['argv'] for record in self.records()]


@pytest.fixture
def launch(tmp_path):
    """The scripts, with no program beside them yet."""
    return Launch(tmp_path)
