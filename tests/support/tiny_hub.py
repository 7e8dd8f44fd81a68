"""A Hugging Face hub in this process, as far as one upload of a model asks it: what `huggingface_hub` sends over HTTP.

with TinyHub(token="hf_right") as hub:
    subprocess.run([...], env={**os.environ, **hub.environment()})
hub.files["me/model"]["config.json"]
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40


class TinyHub:
    """The server, and what it was asked for.

    Attributes:
        files: content by repository and name.
        visibility: of each repository: "private" or "public".
        requests: method and path of every request, in their order.
        spoil: a file whose content is damaged on its way.
    """

    def __init__(self, token: str = "hf_right", spoil: str | None = None) -> None:
        self.token, self.spoil = token, spoil
        self.files: dict[str, dict[str, bytes]] = {}
        self.visibility: dict[str, str] = {}
        self.requests: list[tuple[str, str]] = []
        self.objects: dict[str, bytes] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hub._answer(self)

            do_GET = do_PUT = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> TinyHub:
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def environment(self, token: str | None = "hf_right") -> dict[str, str]:
        """Variables that make `huggingface_hub` ask this server."""
        own = {"HF_ENDPOINT": self.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return {**own, "HF_HOME": "/nowhere", "HF_TOKEN": token or "", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.split("?")[0]
        self.requests.append((handler.command, path))
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if handler.command == "PUT":
            self.objects[path.rsplit("/", 1)[-1]] = body
            status, answer = 200, {}
        elif handler.headers.get("Authorization") != f"Bearer {self.token}":
            status, answer = 401, {"error": "Invalid username or password."}
        else:
            status, answer = self._called(path, body)
        content = json.dumps(answer).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def _called(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization'] or 'me'}/{asked['name']}"
            url = {"url": f"{self.address}/{repo}", "name": repo}
            if repo.startswith("theirs/"):
                return 403, {"error": "You don't have the rights"}
            if repo in self.files:
                return 409, {**url, "error": "You already created this model repo"}
            self.files[repo] = {}
            self.visibility[repo] = asked.get("visibility") or ("private" if asked.get("private") else "public")
            return 200, url
        if path == "/api/validate-yaml":
            wrong = "license: nonsense" in json.loads(body)["content"]
            return (400, {"errors": [{"message": '"license" must be one of'}]}) if wrong else (200, {"warnings": []})
        if match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return 200, {"files": modes}
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.address}/objects/{one['oid']}", "header": {}}}}
                for one in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            repo = self.files[match[1]]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    repo[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repo[value["path"]] = self.objects[value["oid"]]
                elif line["key"] == "deletedFile":
                    del repo[value["path"]]
            if self.spoil in repo:
                content = repo[self.spoil]
                repo[self.spoil] = content[:-1] + bytes([content[-1] ^ 1])
            return 200, {"commitUrl": f"{self.address}/{match[1]}/commit/{COMMIT}", "commitOid": COMMIT}
        if match := re.fullmatch(rf"/api/models/(.+)/tree/(?:main|{COMMIT})", path):
            return 200, [self._entry(name, content) for name, content in self.files[match[1]].items()]
        return 404, {"error": f"no {path}"}

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            entry["oid"] = "0" * 40
        return entry
