"""As much of Google Cloud Storage's JSON interface as reading takes, over a local folder."""

import contextlib
import http.server
import threading
import urllib.parse
from pathlib import Path

SECRET = "secret"  # a bucket of this name refuses


class Handler(http.server.BaseHTTPRequestHandler):
    """GET /storage/v1/b/<bucket>/o/<object>?alt=media, with ranges."""

    folder: Path
    protocol_version = "HTTP/1.1"
    requests: list[str]

    def do_GET(self):
        """Answer with an object's bytes, 403 or 404."""
        path = urllib.parse.urlsplit(self.path).path
        self.requests.append(path)
        _, _, rest = path.partition("/b/")
        bucket, _, key = rest.partition("/o/")
        file = self.folder / bucket / urllib.parse.unquote(key)
        if bucket == SECRET:
            return self.answer(403, b"the caller does not have storage.objects.get access")
        if not key or not file.is_file():
            return self.answer(404, b"no such object")
        data, status = file.read_bytes(), 200
        headers = {"x-goog-generation": "1"}
        if span := self.headers.get("Range"):
            first, last = span.removeprefix("bytes=").split("-")
            start = int(first) if first else len(data) - int(last)
            stop = int(last) + 1 if first and last else len(data)
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"
            data, status = data[start:stop], 206
        return self.answer(status, data, headers)

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
def serve(folder):
    """Serve the buckets <folder>/<bucket>; gives (URL, the paths asked for so far)."""
    kind = type("Served", (Handler,), {"folder": Path(folder), "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", kind.requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
