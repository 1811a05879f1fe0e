"""A Hugging Face Hub on 127.0.0.1: a real HTTP server for the real client, with the faults of real networks.

It serves what `hf_hub_download` asks for, HEAD and GET of /{repository}/resolve/{revision}/{file}, with the headers
and error codes by which the client knows a Hub.
"""

import contextlib
import hashlib
import re
import threading
import time
import types
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

RESOLVE = re.compile(r"/(?P<repository>.+)/resolve/(?P<revision>[^/]+)/(?P<filename>.+)")

# What can go wrong with a file. Besides these, a number is an HTTP status.
DROP = "the connection closes without an answer"
DROP_HEAD = "the same, but only for HEAD: the file itself would come"
BREAK = "the connection closes half way through the file"
SHORT = "GET sends fewer bytes than HEAD promised"
GARBAGE = "as many bytes as promised, but others"
LONG = "GET sends more bytes than HEAD promised"
SLOW = "the bytes come in pieces, with pauses"
STALL = "nothing comes for longer than the client waits"

ONE_WAIT = 5  # naps, of 23 seconds in all; 0.36 takes them for config.json even where that is cached


@dataclass
class Repository:
    """Commits, the branch main, and who may read them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit -> filename -> content
    main: str = ""
    token: str | None = None  # a request without it is answered "no such repository" ...
    gated: bool = False  # ... or, if this is True, "access is restricted"
    moved_to: str | None = None


class Hub:
    """The server, its repositories, its faults and the requests it received."""

    def __init__(self):
        self.repositories = {}
        self.faults = {}  # filename -> one of the above
        self.stall = 0.0  # seconds
        self.after = {}  # filename -> function to call once the file has been sent
        self.requests = []  # "HEAD main/config.json", …
        self.naps = []  # seconds that the client would have slept between its tries; here it does not sleep
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def commit(self, name, files, **access):
        """Make `files` the new head of a repository's branch main; return the commit."""
        repository = self.repositories.setdefault(name, Repository(**access))
        commit = hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()
        repository.commits[commit] = files
        repository.main = commit
        return commit

    def fault(self, filename):
        """What goes wrong when this file is asked for; None for nothing."""
        return self.faults.get(filename)

    def stop(self):
        """Stop the server: from now on connections are refused."""
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def loopback_hub(monkeypatch, cache):
    """Start a Hub without repositories; huggingface_hub uses only this one, with an empty cache and no token."""
    hub = Hub()
    connect(monkeypatch, hub.url, cache, hub.naps.append)
    yield hub
    hub.stop()
    new_session()


def connect(monkeypatch, url, cache, sleep):
    """Let huggingface_hub use only the Hub at this address, and sleep in this way between its tries."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    clock = types.SimpleNamespace(**{name: getattr(time, name) for name in dir(time)} | {"sleep": sleep})
    monkeypatch.setattr(_http, "time", clock)
    monkeypatch.setattr(file_download, "time", clock)
    for module in (constants, file_download):  # 0.x copies it into the second
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    new_session()


def new_session():
    """Let huggingface_hub forget its connections and the settings they were made with: proxy, offline mode."""
    from huggingface_hub.utils import _http

    (_http.reset_sessions if hasattr(_http, "reset_sessions") else _http.close_session)()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer()

    do_GET = do_HEAD

    def answer(self):
        name, revision, filename = map(unquote, RESOLVE.fullmatch(self.path).groups())
        self.hub.requests.append(f"{self.command} {revision}/{filename}")
        repository = self.hub.repositories.get(name)
        authorization = self.headers.get("Authorization")
        if repository is None:
            self.error(401 if authorization is None else 404, "RepoNotFound")
        elif repository.moved_to is not None:
            self.send(307, {"Location": self.path.replace(name, repository.moved_to, 1)})
        elif repository.token is not None and authorization != f"Bearer {repository.token}":
            self.error(*((403, "GatedRepo") if repository.gated else (401, "RepoNotFound")))
        elif (commit := repository.main if revision == "main" else revision) not in repository.commits:
            self.error(404, "RevisionNotFound")
        elif filename not in repository.commits[commit]:
            self.error(404, "EntryNotFound", {"X-Repo-Commit": commit})
        else:
            self.send_file(filename, repository.commits[commit][filename], commit)

    def send_file(self, filename, content, commit):
        fault = self.hub.fault(filename)
        headers = {"ETag": f'"{etag(filename, content)}"', "X-Repo-Commit": commit}
        if fault == STALL:
            time.sleep(self.hub.stall)
        if fault == DROP or (fault == DROP_HEAD and self.command == "HEAD"):
            self.close_connection = True
        elif isinstance(fault, int):
            self.error(fault)
        elif self.command == "HEAD":
            self.send(200, headers, content)
        else:
            self.send_content(fault, headers, content)
            self.hub.after.pop(filename, lambda: None)()

    def send_content(self, fault, headers, content):
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])  # a broken download goes on from there
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        content = content[start:]
        half = len(content) // 2
        if fault == SHORT:
            content = content[:half]
        elif fault == GARBAGE:
            content = content[:half] + bytes(byte ^ 0xFF for byte in content[half:])
        elif fault == LONG:
            content += content[:half]
        self.send(206 if start else 200, headers, content, half if fault == BREAK else None, fault == SLOW)

    def error(self, status, code="", headers=()):
        self.send(status, {"X-Error-Code": code, "X-Error-Message": f"from {self.hub.url}", **dict(headers)})

    def send(self, status, headers, content=b"", sent=None, slowly=False):
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")  # so that none is left open when the Hub stops
        self.end_headers()
        if self.command == "GET":
            content = content[:sent]
            piece = len(content) // 5 + 1 if slowly else len(content) or 1
            for start in range(0, len(content), piece):
                self.wfile.write(content[start : start + piece])
                time.sleep(0.01 if slowly else 0)

    def log_message(self, *args):
        """Print no log."""


def etag(filename, content):
    """The SHA-256 of a large file, git's name for a small one: the client names its cached blobs after it."""
    if filename.endswith((".safetensors", ".bin")):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def files(folder):
    """The files of a folder, from name to content."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
