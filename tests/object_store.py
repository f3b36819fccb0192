"""Real servers of S3 and of Google's storage on loopback, and what writes to them in a process that can be killed."""

import hashlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET = "bucket"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key-of-the-tests",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
    "AWS_EC2_METADATA_DISABLED": "true",  # nothing is asked beyond loopback
    "AWS_REGION": "us-east-1",
}


class S3:
    """Moto's server; what is stored outlives `stop` and `start`."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._make, self.port = ThreadedMotoServer, 0
        self.start()

    def start(self) -> None:
        self._server = self._make(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def uri(self, prefix: str = "runs", bucket: str = BUCKET) -> str:
        return f"s3://{bucket}/{prefix}?endpoint_override={self.endpoint}"


class Google:
    """The emulator of Google's storage; what is stored outlives `stop` and `start`."""

    def __init__(self) -> None:
        from gcp_storage_emulator.handlers.buckets import create_bucket
        from gcp_storage_emulator.server import APIThread
        from gcp_storage_emulator.storage import Storage

        self._make, self._storage, self.port = APIThread, Storage(use_memory_fs=True), 0
        create_bucket(BUCKET, self._storage)
        self.start()

    def start(self) -> None:
        self._server = self._make("127.0.0.1", self.port, self._storage, daemon=True)
        self._server.start()
        self._server.is_running.wait()
        self.port = self._server._httpd.server_address[1]

    def stop(self) -> None:
        self._server.join()

    def uri(self, prefix: str = "runs", bucket: str = BUCKET) -> str:
        query = f"scheme=http&endpoint_override=127.0.0.1:{self.port}&retry_limit_seconds=1"
        return f"gs://anonymous@{bucket}/{prefix}?{query}"


@contextmanager
def serving() -> Iterator[S3]:
    """An S3 server with an empty bucket."""
    import boto3

    server = S3()
    client = boto3.client(
        "s3", endpoint_url=server.endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    client.create_bucket(Bucket=BUCKET)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def serving_google() -> Iterator[Google]:
    """A server of Google's storage with an empty bucket."""
    server = Google()
    try:
        yield server
    finally:
        server.stop()


def finish_epoch(run: Path, epoch: int, keep: int = 2, size: int = 200_000) -> None:
    """Write what a worker writes when an epoch is done: the checkpoint, then its metrics, and older checkpoints go."""
    import shutil

    folder = run / "checkpoints" / f"epoch-{epoch:04d}"
    folder.mkdir(parents=True)
    files = {"model.safetensors": size, "optimizer.safetensors": 2 * size}
    for name, length in files.items():
        (folder / name).write_bytes(hashlib.shake_256(f"{epoch} {name}".encode()).digest(length))
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    (folder / "state.json").write_text(json.dumps({"epoch": epoch, "sha256": digests}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"epoch": epoch, "val/top1": float(epoch), "val/loss": 1.0}) + "\n")
    for path in sorted((run / "checkpoints").glob("epoch-*"))[:-keep]:
        shutil.rmtree(path)


def push_and_die(folder: str, attempt: str, moment: int, part: float) -> None:
    """Send a run; at the object number `moment` (counted from 0, deletions too) kill this process, some of it sent."""
    from statten.storage.mirror import mirror_of
    from statten.storage.store import Store

    store, count = mirror_of(Path(folder)).store, 0
    send, delete = Store._send, Store.delete

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counted_send(self, path: Path, name: str) -> None:
        nonlocal count
        count += 1
        if count == moment + 1:
            with self.files.open_output_stream(f"{store.base}/{name}") as sink:
                sink.write(path.read_bytes()[: int(part * path.stat().st_size)])
                die()
        send(self, path, name)

    def counted_delete(self, name: str) -> None:
        nonlocal count
        count += 1
        if count == moment + 1:
            die()
        delete(self, name)

    Store._send = counted_send
    Store.delete = counted_delete
    mirror_of(Path(folder)).push(attempt, whole=True)
    print(count)


if __name__ == "__main__":
    push_and_die(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
