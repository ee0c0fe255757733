"""A real server that behaves like AWS, for tests: ministack, which checks signatures and evaluates session policies.

What it does not do as AWS does: it knows no shortest or longest session, and takes any web identity token. Those are
held to our own checks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from orchestrator.devstack.ports import free_port
from orchestrator.devstack.process import last_lines, start, stop

REGION = "us-east-1"
ACCOUNT = "000000000000"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/team/reporter"
BUCKETS = ("reports", "payroll")
EXTERNAL_ID = "orchestrator-of-acme"
TRUSTED = ("sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity")


@dataclass(frozen=True)
class UserKey:
    """An access key of a user of IAM."""

    id: str
    secret: str = field(repr=False)


@dataclass
class AwsServer:
    """One server on a free port of 127.0.0.1, its files below `directory`. Use as a context manager."""

    directory: Path
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        environment = {
            "PATH": os.defpath,
            "HOME": str(self.directory),
            "TMPDIR": str(self.directory),
            "S3_DATA_DIR": str(self.directory / "s3"),
            "AUTH": "true",
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(self.port),
            "IOT_MTLS_ENABLED": "false",
            "SFTP_ENABLED": "false",
            "SERVICES": "s3,sts,iam,sqs",
            "LOG_LEVEL": "ERROR",
        }
        command = [sys.executable, "-c", "from ministack.app import main; main()"]
        self._process = start(command, log=self.directory / "aws.log", environment=environment)
        until = time.monotonic() + 30
        with httpx.Client(trust_env=False, timeout=2) as client:
            while time.monotonic() < until and self._process.poll() is None:
                try:
                    if client.get(f"{self.endpoint}_ministack/health").status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.02)
        raise AssertionError(f"it did not start: {last_lines(self.directory / 'aws.log')}")

    def stop(self) -> None:
        if self._process is not None:
            stop(self._process, how=signal.SIGKILL)  # it keeps nothing
            self._process = None

    def pause(self) -> None:
        """From now on it accepts connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def client(self, service: str, key: str = "test", secret: str = "test", token: str | None = None) -> Any:
        """botocore, as the account's root or with these credentials."""
        from botocore.config import Config
        from botocore.session import Session

        session = Session()
        session.register_component("data_loader", _descriptions())
        return session.create_client(
            service,
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=token,
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=20),
        )

    def user(self, name: str, actions: list[str]) -> UserKey:
        """A user with a key who may do this to anything."""
        iam = self.client("iam")
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=_policy(actions, ["*"]))
        made = iam.create_access_key(UserName=name)["AccessKey"]
        return UserKey(made["AccessKeyId"], made["SecretAccessKey"])

    def forget(self, name: str, key: UserKey) -> None:
        """Take a user away again."""
        iam = self.client("iam")
        iam.delete_access_key(UserName=name, AccessKeyId=key.id)
        iam.delete_user_policy(UserName=name, PolicyName="own")
        iam.delete_user(UserName=name)

    def role(self, trusted: str, *, actions: list[str], name: str = "reporter", external_id: str | None = None) -> None:
        """A role that this user may assume."""
        statement: dict[str, Any] = {
            "Effect": "Allow",
            "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:user/{trusted}"},
            "Action": list(TRUSTED),
        }
        if external_id is not None:
            statement["Condition"] = {"StringEquals": {"sts:ExternalId": external_id}}
            tagging = {**statement, "Action": list(TRUSTED[1:])}
            del tagging["Condition"]
            statements = [{**statement, "Action": TRUSTED[0]}, tagging]
        else:
            statements = [statement]
        document = json.dumps({"Version": "2012-10-17", "Statement": statements})
        iam = self.client("iam")
        iam.create_role(Path="/team/", RoleName=name, AssumeRolePolicyDocument=document)
        iam.put_role_policy(RoleName=name, PolicyName="work", PolicyDocument=_policy(actions, ["*"]))

    def fill(self) -> None:
        """Two buckets with the same objects."""
        s3 = self.client("s3")
        for bucket in BUCKETS:
            s3.create_bucket(Bucket=bucket)
            for customer in ("42", "43"):
                s3.put_object(Bucket=bucket, Key=f"{customer}/may.csv", Body=f"{bucket} of {customer}".encode())


@cache
def _descriptions() -> Any:
    """botocore's files that describe AWS, each of which is read once: that takes longer than anything asked here."""
    from botocore.loaders import create_loader

    return create_loader()


def _policy(actions: list[str], resources: list[str]) -> str:
    statement = {"Effect": "Allow", "Action": actions, "Resource": resources}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})
