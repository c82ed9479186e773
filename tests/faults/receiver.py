"""A receiver of webhooks: keeps what it was sent and answers as each path was told to. Checks signatures by the standard's own library."""
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook


class Receiver:
    def __init__(self):
        self.got = []  # (path, headers, body)
        self.plans = {}  # path -> list of (status, headers, body), one an answer; then 204
        self.gates = {}  # path -> threading.Event that an answer waits for
        self.open = {}  # path -> how many requests wait
        self.drips = set()  # paths whose answer comes byte by byte and never ends
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                receiver.got.append((self.path, dict(self.headers.items()), body))
                gate = receiver.gates.get(self.path)
                if gate:
                    receiver.open[self.path] = receiver.open.get(self.path, 0) + 1
                    gate.wait(30)
                if self.path in receiver.drips:
                    return self.drip()
                plan = receiver.plans.get(self.path)
                status, headers, text = plan.pop(0) if plan else (204, {}, b"")
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)
                except OSError:
                    self.close_connection = True

            def drip(self):
                self.close_connection = True
                try:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8000\r\n\r\n")
                    while self.path in receiver.drips:
                        self.wfile.write(b"x")
                        time.sleep(0.1)
                except OSError:
                    pass

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, path):
        return "http://127.0.0.1:%d%s" % (self.port, path)

    def to(self, path):
        return [(headers, body) for where, headers, body in self.got if where == path]

    def events(self, path):
        return [json.loads(body) for _, body in self.to(path)]

    def close(self):
        for gate in self.gates.values():
            gate.set()
        self.server.shutdown()
        self.server.server_close()


def verified(secret, headers, body):
    """What the standard's library makes of a message; raises when the signature is not good."""
    return Webhook(secret).verify(body, {name.lower(): value for name, value in headers.items()})
