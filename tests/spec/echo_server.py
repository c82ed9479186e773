"""A server that tells what it was sent: python3 echo_server.py. Prints its port, ends when its standard input does.

/status/N answers N, /bytes/N that many bytes, /redirect leads elsewhere, everything else echoes as JSON."""
import http.server
import json
import sys
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        parts = self.path.split("/")
        status, kind = 200, "application/json"
        out = json.dumps({"method": self.command, "path": self.path, "body": body, "headers": {k.lower(): v for k, v in self.headers.items()}})
        if parts[1] == "status":
            status = int(parts[2])
        elif parts[1] == "bytes":
            kind, out = "text/plain", "x" * int(parts[2])
        elif parts[1] == "redirect":
            status = 302
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(out)))
        self.send_header("Set-Cookie", "a=b")
        if status == 302:
            self.send_header("Location", "http://elsewhere.invalid/")
        self.end_headers()
        self.wfile.write(out.encode())

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
with open(sys.argv[1], "w") as f:
    f.write("%d\n" % server.server_port)
sys.stdin.read()
