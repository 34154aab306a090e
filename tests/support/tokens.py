"""Signed tokens as docker-registry takes them (distribution, token authentication), by openssl."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.web import Answer, Asked


def certificate(base: Path, kind: str = "rsa:2048") -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    cert, key = base / "cert.pem", base / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", kind, "-nodes", "-days", "2", "-subj", "/CN=test",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class TokenServer:
    """Gives tokens for what is asked for to who says ``alice:secret``."""

    cert: Path
    key: Path

    def __call__(self, asked: Asked) -> Answer:
        wanted = "Basic " + base64.b64encode(b"alice:secret").decode()
        if asked.headers.get("authorization") != wanted:
            return Answer(401)
        access: list[dict[str, object]] = []
        for scope in asked.query.get("scope", []):
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        return Answer(
            200, {}, json.dumps({"token": self.token(access), "expires_in": 300}).encode()
        )

    def token(self, access: list[dict[str, object]]) -> str:
        """A JWT (RS256) whose key the certificate in its header vouches for."""
        der = "".join(self.cert.read_text().splitlines()[1:-1])
        head = {"alg": "RS256", "typ": "JWT", "x5c": [der]}
        body = {
            "iss": "issuer", "sub": "alice", "aud": "registry", "jti": "1",
            "nbf": 0, "iat": 0, "exp": 1 << 33, "access": access,
        }  # fmt: skip
        signed = ".".join(_text(json.dumps(part).encode()) for part in (head, body))
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self.key)],
            input=signed.encode(), check=True, capture_output=True,
        ).stdout  # fmt: skip
        return f"{signed}.{_text(signature)}"
