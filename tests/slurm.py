"""A Slurm of a few lines: `srun` and `scontrol` as the batch script calls them, and a stand-in for the training."""

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SBATCH = ROOT / "scripts" / "slurm" / "train.sbatch"

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
trap 'kill -s USR1 $tasks 2>/dev/null' USR1
trap 'kill -s TERM $tasks 2>/dev/null' TERM
tasks=""
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
  tasks+=" $!"
done
highest=0
for task in $tasks; do
  while :; do
    status=0; wait "$task" || status=$?
    kill -0 "$task" 2>/dev/null || break
  done
  [ "$status" -le "$highest" ] || highest=$status
done
exit "$highest"
"""

SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
  "show job") echo "JobId=$4 JobName=voco-llama JobState=$FAKE_STATE Command=$FAKE_COMMAND WorkDir=/" ;;
  "show hostnames") printf 'node-a\\nnode-b\\n' ;;
  "requeue "*) echo "$2 after $(find . -name 'saved_*' | wc -l)" >>requeued ;;
  *) exit 9 ;;
esac
"""

PYTHON = """#!/usr/bin/env bash
[ "$1" = -m ] || { echo "${*: -2}" >batch; echo run; exit "$FAKE_BATCH"; }
trap 'sleep 0.5; touch "saved_$RANK"; exit 138' USR1
trap 'sleep 0.5; touch "saved_$RANK"; exit 143' TERM
echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT $*" >"started_$RANK"
[ "$FAKE_STATUS" = waits ] || exit "$FAKE_STATUS"
for ((tick = 0; tick < 300; tick++)); do sleep 0.1; done
"""


class FakeJob:
    """A job of two processes in a folder of its own; `training` is the status that they end in, or `waits`."""

    def __init__(self, folder: Path, training: str, state: str = "RUNNING", batch: int = 0, **more: str) -> None:
        self.folder = folder
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": PYTHON}.items():
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        copied = folder / "slurm_script"
        copied.write_bytes(SBATCH.read_bytes())
        environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "VOCO_PYTHON": str(folder / "bin" / "python"),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "1",
            "FAKE_COMMAND": str(SBATCH),
            "FAKE_STATE": state,
            "FAKE_STATUS": training,
            "FAKE_BATCH": str(batch),
        }
        self.process = subprocess.Popen(
            ["bash", str(copied), "train", "experiment=voco_1"],
            cwd=folder,
            env=environment | more,
            stderr=subprocess.PIPE,
            text=True,
        )

    def signal(self, number: signal.Signals) -> None:
        """Sent to the batch script alone, once both processes are there."""
        deadline = time.monotonic() + 20
        while len(list(self.folder.glob("started_*"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.1)
        self.process.send_signal(number)

    def end(self) -> tuple[int, list[str], str]:
        """Exit status, jobs that were queued again, and after how many processes had saved, what was said."""
        _, said = self.process.communicate(timeout=30)
        requeued = self.folder / "requeued"
        return self.process.returncode, requeued.read_text().splitlines() if requeued.exists() else [], said
