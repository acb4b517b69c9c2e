"""As much of Google Cloud Storage's JSON interface as is used here, over a local folder."""

import contextlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path

SECRET = "secret"  # a bucket of this name refuses


class Handler(http.server.BaseHTTPRequestHandler):
    """Objects of a bucket: GET with ranges, conditional POST and DELETE."""

    folder: Path
    generations: dict[Path, int]  # of objects that were written; 1 of the others
    lock = threading.Lock()
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece: two would wait for each other, 40 ms
    requests: list[str]
    trouble: Callable[[], int | None]

    def parse_request(self):
        """Answer at once where there is trouble: with its status, or with nothing at all (0)."""
        if not super().parse_request():
            return False
        status = type(self).trouble()
        if status is None:
            return True
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.close_connection = True
        if status:
            self.answer(status, b"there is trouble", {"Connection": "close"})
        return False

    def do_GET(self):
        """Answer with an object's bytes or a list of objects, 403 or 404."""
        path = urllib.parse.urlsplit(self.path).path
        self.requests.append(path)
        _, _, rest = path.partition("/b/")
        bucket, _, key = rest.partition("/o/")
        file = self.folder / bucket / urllib.parse.unquote(key)
        if bucket == SECRET:
            return self.answer(403, b"the caller does not have storage.objects.get access")
        if rest.endswith("/o"):
            return self.list(self.folder / bucket.removesuffix("/o"))
        if not key or not file.is_file():
            return self.answer(404, b"no such object")
        data, status = file.read_bytes(), 200
        headers = {"x-goog-generation": str(self.generation(file))}
        if span := self.headers.get("Range"):
            first, last = span.removeprefix("bytes=").split("-")
            start = int(first) if first else len(data) - int(last)
            stop = int(last) + 1 if first and last else len(data)
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"
            data, status = data[start:stop], 206
        return self.answer(status, data, headers)

    def list(self, folder):
        """Answer with the names of all objects that begin as asked."""
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        names = (str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file())
        items = [{"name": name} for name in names if name.startswith(query.get("prefix", ""))]
        return self.answer(200, json.dumps({"items": items}).encode())

    def generation(self, file):
        """The generation of an object; 0 of none."""
        return self.generations.get(file, 1) if file.is_file() else 0

    def do_POST(self):
        """Write an object if its generation is the expected one; else answer with 412."""
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        bucket = url.path.partition("/b/")[2].partition("/o")[0]
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.change(self.folder / bucket / query["name"], query, data)

    def do_DELETE(self):
        """Delete an object under the same condition."""
        url = urllib.parse.urlsplit(self.path)
        bucket, _, key = url.path.partition("/b/")[2].partition("/o/")
        query = dict(urllib.parse.parse_qsl(url.query))
        self.change(self.folder / bucket / urllib.parse.unquote(key), query, None)

    def change(self, file, query, data):
        """Write or delete an object, and answer."""
        with self.lock:
            expected = query.get("ifGenerationMatch")
            if expected is not None and int(expected) != self.generation(file):
                return self.answer(412, b"the condition does not hold")
            if data is None:
                file.unlink()
                return self.answer(204, b"")
            self.generations[file] = self.generations.get(file, 1) + 1
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            generation = str(self.generations[file])
        described = {"name": query["name"], "generation": generation, "size": str(len(data))}
        return self.answer(200, json.dumps(described).encode())

    def answer(self, status, data, headers=None):
        """Send a response."""
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Say nothing."""


@contextlib.contextmanager
def serve(folder, trouble=lambda: None):
    """Serve the buckets <folder>/<bucket>; gives (URL, the paths asked for so far).

    `trouble` is asked before every answer: None for the right one, a status, or 0 for none.
    """
    names = {"folder": Path(folder), "requests": [], "generations": {}}
    kind = type("Served", (Handler,), {**names, "trouble": staticmethod(trouble)})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.handle_error = lambda *_: None  # somebody was killed while it asked
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", kind.requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
