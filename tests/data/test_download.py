import functools
import http.server
import socket
import threading
import time

import pytest
from small_sets import write_idx_set
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

from elstm.data import download as module
from elstm.data.download import download
from elstm.errors import UserError

FILES = [f"{name}.gz" for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte")]


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server on this machine that holds a small set, in the place of MNIST's mirrors."""
    write_idx_set(tmp_path / "server", packed=True)
    raw = tmp_path / "server" / "MNIST" / "raw"
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=raw)
    )
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(
        datasets.MNIST,
        "mirrors",
        [f"http://127.0.0.1:{server.server_port}/{p}" for p in ("no/", "")],
    )
    monkeypatch.setattr(
        datasets.MNIST, "resources", [(path.name, calculate_md5(path)) for path in raw.iterdir()]
    )
    yield raw
    server.shutdown()
    server.server_close()


def test_fetches_the_files_asked_for_from_the_mirror_that_has_them(mirror, tmp_path):
    folder = tmp_path / "data" / "MNIST" / "raw"
    download("MNIST", FILES, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    for file in FILES:
        assert (folder / file).read_bytes() == (mirror / file).read_bytes()


def test_a_wrong_checksum_leaves_nothing_behind(mirror, tmp_path):
    (mirror / FILES[1]).write_bytes(b"a log-in page")
    folder = tmp_path / "data" / "MNIST" / "raw"
    with pytest.raises(UserError, match=r"the download failed \(.*corrupted"):
        download("MNIST", FILES[1:], folder)
    assert not (tmp_path / "data").exists()


def test_what_came_before_a_failure_stays(mirror, tmp_path):
    (mirror / FILES[1]).unlink()
    folder = tmp_path / "data" / "MNIST" / "raw"
    with pytest.raises(UserError, match=r"failed \(127\.0\.0\.1:\d+: HTTP Error 404"):
        download("MNIST", FILES, folder)
    assert [path.name for path in folder.iterdir()] == FILES[:1]


def test_without_a_network_one_line_says_what_to_do(tmp_path, monkeypatch):
    def lookup(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "data" / "MNIST" / "raw"
    with pytest.raises(UserError) as caught:
        download("MNIST", FILES, folder)
    line = str(caught.value)
    assert line.startswith(f"{folder} lacks {', '.join(FILES)}, and the download failed (")
    assert "Name or service not known" in line
    assert "set data.root= to a folder that holds MNIST/raw" in line
    assert "data=digits" in line
    assert "\n" not in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("where", ["name server", "mirror"])
def test_gives_up_where_nothing_answers(tmp_path, monkeypatch, where):
    assert module.STALL <= 25  # the promise is 30 s, with the import of torchvision
    monkeypatch.setattr(module, "STALL", 0.3)
    monkeypatch.setenv("no_proxy", "*")
    released = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(datasets.MNIST, "mirrors", [url, url])
        if where == "name server":

            def lookup(*args, **kwargs):
                released.wait(10)
                raise socket.gaierror(-3, "Temporary failure in name resolution")

            monkeypatch.setattr(socket, "getaddrinfo", lookup)
        start = time.monotonic()
        with pytest.raises(UserError, match=r"no byte arrived for 0\.3 s"):
            download("MNIST", FILES, tmp_path / "raw")
        assert time.monotonic() - start < 5  # SILENCE is 8
    released.set()  # and the closed socket resets its connection: the threads left behind end
    for thread in threading.enumerate():
        if thread.name == "download":
            thread.join()
    assert socket.getdefaulttimeout() is None
    assert not (tmp_path / "raw").exists()


def test_a_silent_mirror_is_left_for_the_next(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(datasets.MNIST, "mirrors", [url, *datasets.MNIST.mirrors])
        download("MNIST", FILES[1:], tmp_path / "raw")
    assert (tmp_path / "raw" / FILES[1]).is_file()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "MNIST" / "raw", tmp_path / "file", tmp_path / "a\0b"):
        with pytest.raises(UserError, match=r"cannot be written to \(.*\): set data.root= to"):
            download("MNIST", FILES, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
