import functools
import hashlib
import http.server
import multiprocessing
import threading
from pathlib import Path

import pytest

from tarflow_jax import downloads
from tarflow_jax.errors import InputError

CONTENT = bytes(range(256)) * 9000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Gives the file at /whole/file, half of it at /half/file, nothing elsewhere; counts."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.asked = []

    def address(self, path):
        return f'http://127.0.0.1:{self.server_port}/{path}'


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path not in ('/whole/file', '/half/file'):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header('Content-Length', str(len(CONTENT)))
        self.end_headers()
        half = len(CONTENT) // 2
        self.wfile.write(CONTENT if self.path == '/whole/file' else CONTENT[:half])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_file_is_fetched_once_and_kept(server, tmp_path):
    fetch = functools.partial(
        downloads.fetch_once, tmp_path / 'cache', [server.address('whole/file')], SHA256
    )
    assert fetch() == tmp_path / 'cache' / 'file'
    assert fetch().read_bytes() == CONTENT
    assert server.asked == ['/whole/file']


def test_the_second_address_is_asked_if_the_first_fails(server, tmp_path):
    addresses = [server.address('gone/first'), server.address('whole/file')]
    assert downloads.fetch_once(tmp_path, addresses, SHA256).read_bytes() == CONTENT
    assert server.asked == ['/gone/first', '/whole/file']


def test_a_file_under_the_second_name_is_found(server, tmp_path):
    (tmp_path / 'file').write_bytes(b'there')
    addresses = [server.address('gone/first'), server.address('whole/file')]
    assert downloads.fetch_once(tmp_path, addresses, SHA256) == tmp_path / 'file'
    assert not server.asked


@pytest.mark.parametrize(
    ('path', 'sha256', 'why'),
    [
        ('half/file', SHA256, 'IncompleteRead'),
        ('whole/file', 64 * '0', f'expected 0000.* but got {SHA256}'),
        ('gone/file', SHA256, '404 Client Error'),
    ],
)
def test_what_is_not_the_file_is_not_kept(server, tmp_path, path, sha256, why):
    address = server.address(path)
    with pytest.raises(InputError, match=why) as error:
        downloads.fetch_once(tmp_path, [address], sha256)
    assert address in str(error.value)
    assert f'file is not in {tmp_path}' in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ['.fetching']


def test_no_network_is_told(tmp_path):
    """Port 1 of this machine takes no connections."""
    with pytest.raises(
        InputError, match=r'could not be fetched \(http://127\.0\.0\.1:1/file: .*put'
    ):
        downloads.fetch_once(tmp_path, ['http://127.0.0.1:1/file'], SHA256)


def test_of_several_processes_one_fetches(server, tmp_path):
    context = multiprocessing.get_context('spawn')
    arguments = (tmp_path, [server.address('whole/file')], SHA256)
    with context.Pool(3) as pool:
        fetched = [pool.apply_async(downloads.fetch_once, arguments) for _ in range(3)]
        assert [result.get(60) for result in fetched] == 3 * [tmp_path / 'file']
    assert server.asked == ['/whole/file']


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / 'taken').write_text('a file')
    with pytest.raises(InputError, match=r'file cannot be fetched into .*taken.*TARFLOW_CACHE'):
        downloads.fetch_once(tmp_path / 'taken', ['http://127.0.0.1:1/file'], SHA256)


def test_the_cache_folder_is_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv('TARFLOW_CACHE', str(tmp_path))
    assert downloads.cache_folder() == tmp_path
    monkeypatch.delenv('TARFLOW_CACHE')
    assert downloads.cache_folder() == Path.home() / '.cache' / 'tarflow_jax'
