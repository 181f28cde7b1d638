"""Downloads from a server on this machine: resumed, checked, and never half there."""

import hashlib
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from spikformer_edu import SpikformerError
from spikformer_edu.data import load
from spikformer_edu.data.files import download

CONTENT = bytes(range(256)) * 20_000  # 5 MB
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves its content; ``ends``: after how many bytes of it each request is cut off, ``ranges``: if it resumes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ends, self.ranges, self.asked = CONTENT, [], True, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/file"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        start = int(wanted[6:-1]) if wanted and self.server.ranges else 0
        if start >= len(self.server.content):
            return self.send_error(416)
        self.send_response(206 if wanted and self.server.ranges else 200)
        self.send_header("Content-Length", str(len(self.server.content) - start))
        self.end_headers()
        end = self.server.ends.pop(0) if self.server.ends else len(self.server.content)
        self.wfile.write(self.server.content[start:end])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def test_a_download_that_broke_off_goes_on_where_it_was(server, tmp_path):
    server.ends = [2_000_000, 3_500_000]
    file = tmp_path / "new" / "a.zip"
    for there in (2_000_000, 3_500_000):
        with pytest.raises(SpikformerError, match=f"cannot download a.zip .*{there:,} of 5,120,000 bytes; try again"):
            download(server.url, MD5, file)
        assert [p.name for p in file.parent.iterdir()] == ["a.zip.part"]
    download(server.url, MD5, file)
    assert file.read_bytes() == CONTENT and [p.name for p in file.parent.iterdir()] == ["a.zip"]
    assert server.asked == [None, "bytes=2000000-", "bytes=3500000-"]


def test_a_server_that_cannot_resume_is_asked_for_all_of_it(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(b"something")
    server.ranges = False
    download(server.url, MD5, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_part_that_is_all_of_it_is_taken(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    download(server.url, MD5, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_another_file_than_expected_leaves_nothing(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(b"the beginning of another file")
    for _ in range(2):
        with pytest.raises(SpikformerError, match="cannot download a.zip .*checksum is wrong"):
            download(server.url, "0" * 32, tmp_path / "a.zip")
        assert list(tmp_path.iterdir()) == []


def test_no_server_leaves_not_even_a_folder(tmp_path):
    with pytest.raises(SpikformerError, match="cannot download a.zip"):
        download("http://127.0.0.1:9/file", MD5, tmp_path / "new" / "a.zip")
    assert list(tmp_path.iterdir()) == []


def test_two_downloads_at_once_do_not_disturb_each_other(server, tmp_path, monkeypatch):
    import multiprocessing

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=download, args=(server.url, MD5, tmp_path / "a.zip")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0, 0] and (tmp_path / "a.zip").read_bytes() == CONTENT


@pytest.mark.filterwarnings("ignore:.*holds .* recordings of")
def test_cifar10dvs_is_downloaded_when_it_is_not_there(server, recordings, tmp_path, monkeypatch):
    from tonic.datasets import CIFAR10DVS

    shutil.make_archive(tmp_path / "all", "zip", recordings / "CIFAR10DVS")
    server.content = (tmp_path / "all.zip").read_bytes()
    monkeypatch.setattr(CIFAR10DVS, "url", server.url)
    monkeypatch.setattr(CIFAR10DVS, "file_md5", hashlib.md5(server.content).hexdigest())
    (tmp_path / "empty").mkdir()
    assert len(load("cifar10dvs", tmp_path / "empty").train) == 20
    assert len(server.asked) == 1 and len(load("cifar10dvs", tmp_path / "empty").train) == 20 and len(server.asked) == 1
