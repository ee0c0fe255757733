"""What `orchestrator serve` costs while nothing is due: resident memory and processor time with many schedules.

    python benchmarks/serve_idle.py [--schedules 1000] [--seconds 20]

Neither Vault nor a database is needed: nothing is run. The ledger is there before, as it is whenever `serve` begins
but for the first time: what makes its tables takes 10 MiB more. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

from orchestrator.clock import SystemClock
from orchestrator.ledger.opening import open_ledger

WORKFLOW = """version: 1
name: idle_{number}
agent: nobody
schedule: {{ cron: "{minute} 3 1 1 *", timezone: Europe/Berlin, jitter: 10m }}
steps:
  read:
    action: postgres.query
    grants:
      db: {{ kind: database, connection: support, role: feedback-read }}
    with: {{ sql: "SELECT count(*) FROM customer_feedback WHERE id > %(low)s", parameters: {{ low: {number} }} }}
    outputs: [rows]
  tell:
    action: exec
    with: {{ command: [/bin/echo, "${{{{ steps.read.output.rows }}}}"] }}
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(given.schedules):
            (folder / f"idle_{number}.yaml").write_text(WORKFLOW.format(number=number, minute=number % 60))
        print(json.dumps(measured(folder, given.schedules, given.seconds), indent=2))


def measured(folder: Path, schedules: int, seconds: float) -> dict[str, float]:
    """Start the scheduler, wait until all is loaded, watch it for some seconds, and stop it."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("ORCHESTRATOR_", "VAULT_"))
    }
    environment |= {
        "VAULT_ADDR": "http://127.0.0.1:9",
        "VAULT_TOKEN": "none",
        "ORCHESTRATOR_POLICY": "allow-all",
        "ORCHESTRATOR_LEDGER_URL": f"sqlite:///{folder}/ledger/ledger.db",
    }
    (folder / "ledger").mkdir(mode=0o700)
    open_ledger(environment["ORCHESTRATOR_LEDGER_URL"], clock=SystemClock()).close()
    command = [sys.executable, "-m", "orchestrator.cli", "serve", str(folder)]
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0", "--log-format", "json"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    address = ""
    for line in process.stderr:
        record = json.loads(line)
        address = record.get("address", address)
        if "workflows are scheduled" in record["message"]:
            break
    loaded = time.monotonic() - began
    watched = psutil.Process(process.pid)
    before, start = watched.cpu_times(), time.monotonic()
    time.sleep(seconds)
    after, took = watched.cpu_times(), time.monotonic() - start
    with urllib.request.urlopen(f"http://{address}/healthz") as answer:
        healthy = answer.status == 200
    memory = watched.memory_info().rss
    process.terminate()
    return {
        "schedules": schedules,
        "loaded_after_seconds": round(loaded, 2),
        "rss_mib": round(memory / 2**20, 1),
        "cpu_percent_of_one_core": round(100 * (after.user + after.system - before.user - before.system) / took, 2),
        "healthy": healthy,
        "exit_code": process.wait(30),
    }


if __name__ == "__main__":
    main()
