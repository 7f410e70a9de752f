"""A web server on this machine with the ways of real ones: ranges, connections that break, files that change."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Server:
    """Serves one file at every path.

    Attributes:
        content: Of the file.
        tag: Its ETag; None sends none.
        ranges: Whether requests for a part of it are understood.
        breaks: For each request to come, the bytes after which the connection is cut; then none is.
        status: Sent in place of the file, where it is not 200.
        redirect: Where every request is sent, where it is not None.
        asked: The `Range` of each request, or None.
    """

    def __init__(self, content):
        self.content, self.tag, self.ranges, self.status, self.redirect = content, '"v1"', True, 200, None
        self.breaks, self.asked = [], []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}/images.zip"

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request):
        asked = request.headers.get("Range")
        self.asked.append(asked)
        if self.redirect or self.status != 200:
            request.send_response(302 if self.redirect else self.status)
            if self.redirect:
                request.send_header("Location", self.redirect)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        same = request.headers.get("If-Range") == self.tag
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges and same else 0
        size = len(self.content)
        if start >= size > 0 and start:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{size}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        request.send_header("Content-Length", str(size - start))
        if self.tag:
            request.send_header("ETag", self.tag)
        request.end_headers()
        end = start + self.breaks.pop(0) if self.breaks else size
        request.wfile.write(self.content[start:end])
        request.close_connection = True
