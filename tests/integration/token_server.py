"""A server that gives access tokens for a client id and its secret, as OpenID Connect has it."""

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

CLIENT, SECRET = "sedflow-client", "open-sesame-battery"
LIFE_S = 3600


@contextmanager
def token_server(principal: str) -> Iterator[str]:
    """Yield the address that tokens for `principal` come from."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _endpoint(principal))
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/token"
    finally:
        server.shutdown()
        server.server_close()


def _endpoint(principal: str) -> type[BaseHTTPRequestHandler]:
    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            known = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
            right = self.headers.get("Authorization") == f"Basic {known}"
            answer = {"access_token": make_token(principal), "token_type": "Bearer"}
            body = json.dumps(answer if right else {"error": "invalid_client"}).encode()
            self.send_response(200 if right else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    return Endpoint


def make_token(principal: str) -> str:
    """A JSON web token without a signature, as the test broker takes it."""
    now = int(time.time())
    claims = {"sub": principal, "iat": now, "exp": now + LIFE_S, "scope": []}
    parts = (json.dumps(part).encode() for part in ({"alg": "none"}, claims))
    return ".".join(base64.urlsafe_b64encode(p).decode().rstrip("=") for p in parts) + "."
