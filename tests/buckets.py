"""A real S3 server on the loopback, for tests of stores behind URLs; they are skipped where it is not installed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")


class Server:
    """An S3 server on a port of the loopback that can go away and come back, with what it held."""

    def __init__(self) -> None:
        self._server: Any = None
        self._port = 0
        self.listed: list[str] = []
        """The query of each request to list a bucket, from any process."""
        self.start()

    def seen(self, environ: Mapping[str, Any]) -> None:
        """Note a request."""
        if "list-type=" in (query := environ.get("QUERY_STRING", "")):
            self.listed.append(query)

    def start(self) -> None:
        self._server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def client(self) -> Any:
        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1")

    def bucket(self) -> str:
        """The name of a new, empty bucket."""
        name = f"b{time.monotonic_ns()}"
        self.client().create_bucket(Bucket=name)
        return name

    def objects(self, url: str) -> dict[str, bytes]:
        """What lies below a URL, by names relative to it."""
        client, (name, _, below) = self.client(), url.removeprefix("s3://").partition("/")
        found = client.list_objects_v2(Bucket=name).get("Contents", [])
        keys = [each["Key"] for each in found if each["Key"].startswith(f"{below}/")]
        return {k.removeprefix(f"{below}/"): client.get_object(Bucket=name, Key=k)["Body"].read() for k in keys}


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server whose address and keys are in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setattr(s3fs.S3FileSystem, "retries", 1)  # it would wait two seconds for each time that we try
        server = Server()
        answer = moto_server.DomainDispatcherApplication.__call__

        def noting(self: Any, environ: Any, start_response: Any) -> Any:
            server.seen(environ)
            return answer(self, environ, start_response)

        patch.setattr(moto_server.DomainDispatcherApplication, "__call__", noting)
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server
        server.stop()
