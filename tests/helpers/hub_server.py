"""As much of the Hugging Face hub as is used here: models of a folder, and uploads to it.

Repositories: `org/model` has the folder's files at `main` and `v1`; `org/gated` wants a token;
`org/busy` answers 429; `org/cut` cuts a file off at its first request, `org/broken` at every one.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections import Counter
from pathlib import Path

COMMIT = "1" * 40
TOKEN = "hf_right"


class Handler(http.server.BaseHTTPRequestHandler):
    """The interface that huggingface_hub speaks."""

    folder: Path
    uploads: dict[str, bytes]
    created: list[dict]
    cuts: Counter
    address: str
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        """Answer as GET does, without the body."""
        self.do_GET()

    def do_GET(self):
        """Answer with what a repository is, what it holds, or a file."""
        path = self.path.partition("?")[0]
        authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        parts = path.strip("/").split("/")
        if path == "/api/whoami-v2":
            if authorized:
                return self.answer(200, {"type": "user", "name": "org"})
            return self.refuse(401, "InvalidToken")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name == "org/busy":
            return self.refuse(429, "", {"Retry-After": "0"})
        if name == "org/gated" and not authorized:
            return self.refuse(401, "GatedRepo")
        if name not in ("org/model", "org/gated", "org/cut", "org/broken"):
            return self.refuse(404, "RepoNotFound")
        if parts[0] == "api" and "tree" in parts:
            rows = [
                {"type": "file", "path": file.name, "size": file.stat().st_size,
                 "oid": hashlib.sha1(file.read_bytes()).hexdigest()}
                for file in self.folder.iterdir()
            ]  # fmt: skip
            return self.answer(200, rows)
        if parts[0] == "api":
            if len(parts) > 5 and parts[5] not in ("main", "v1", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            return self.answer(200, {"id": name, "sha": COMMIT, "siblings": [], "private": False})
        file = self.folder / parts[-1]
        if not file.is_file():
            return self.refuse(404, "EntryNotFound")
        return self.send_file(name, file)

    def send_file(self, name, file):
        """Send a file, or the part of it that was asked for; cut it off where that is the fault."""
        data, status = file.read_bytes(), 200
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT,
                   "Accept-Ranges": "bytes"}  # fmt: skip
        if span := self.headers.get("Range"):
            start = int(span.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.cuts[name] += 1
        weights = file.suffix == ".safetensors"
        if weights and (name == "org/broken" or (name == "org/cut" and self.cuts["once"] == 0)):
            self.cuts["once"] += name == "org/cut"
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return
        self.wfile.write(data)

    def do_POST(self):
        """Take an upload: what is to come, where large files go, and the commit."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "InvalidToken")
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return self.answer(200, {"url": f"{self.address}/org/new", "id": "org/new"})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in path:
            files = [
                {"path": file["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if file["path"].endswith("safetensors") else "regular"}
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            return self.answer(200, {"files": files, "commitOid": COMMIT})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.address}/put/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if "/commit/" in path:
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.uploads[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.uploads[value["path"]] = self.uploads.pop(value["oid"])
            url = f"{self.address}/org/new/commit/{COMMIT}"
            return self.answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": url})
        return self.refuse(404, "EntryNotFound")

    def do_PUT(self):
        """Take a large file."""
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.uploads[hashlib.sha256(data).hexdigest()] = data
        self.answer(200, {})

    def answer(self, status, value, headers=()):
        """Send JSON."""
        data = json.dumps(value).encode()
        self.send_response(status)
        for key, text in {**dict(headers), "Content-Length": str(len(data))}.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status, code, headers=()):
        """Send an error as the hub names it."""
        self.answer(status, {"error": code}, {**dict(headers), "X-Error-Code": code})

    def log_message(self, *_):
        """Say nothing."""


@contextlib.contextmanager
def serving(folder: Path):
    """A hub of the models in a folder; the handler's class, with what was uploaded."""
    state = {"folder": folder, "uploads": {}, "created": [], "cuts": Counter()}
    handler = type("Hub", (Handler,), state)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield handler
        server.shutdown()
