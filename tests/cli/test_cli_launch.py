"""`xlstm launch`: what is handed to a cluster says what was asked for, and runs the very command that was given."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from xlstm_jax.cli import main
from xlstm_jax.distributed.launch.kubernetes import KubernetesJob, jobset
from xlstm_jax.distributed.launch.slurm import SlurmJob, script
from xlstm_jax.distributed.start import Start, found_in

ODD = (
    "train",
    "tiny",
    "it's $(id) `x`",
    '"two"\nlines',
    "#SBATCH --nodes=9",
    "ä\u2028\x7f\t🙂",
    "",
    "no",
    "1e3",
    "-",
    "$HOME",
)
RECORD = '#!/bin/bash\nprintf "%s\\0" "$@" > "$RECORDS/${0##*/}"\n'


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECORDS", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")  # a true sbatch must not get any of this


def fake(name: str, then: str) -> None:
    """Put a command into PATH that records its words."""
    path = Path("bin", name)
    path.write_text(RECORD + then)
    path.chmod(0o755)


def launch(words: str) -> int:
    return main(["launch", *words.split()])


def recorded(name: str) -> list[str]:
    return Path(name).read_text().split("\0")[:-1]


def test_the_script_asks_for_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    node = "--nodes 2 --gpus 8 --cpus 16 --setup first --setup second"
    job = "--time 1:00:00 --partition a --account b --name c --output d/%j"
    assert launch(f"slurm {node} {job} --dry-run -- train tiny --mesh fsdp=8") == 0
    lines = capsys.readouterr().out.splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert asked == {
        *("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--cpus-per-task=16", "--time=1:00:00"),
        *("--partition=a", "--account=b", "--job-name=c", "--output=d/%j"),
        *("--open-mode=append", "--requeue", "--signal=USR2@120"),
    }
    assert lines.index("first") < lines.index("second") < lines.index("code=0")
    assert not list(Path().glob("*.sbatch"))


@pytest.mark.parametrize("code", [0, 1, 140])
def test_the_script_runs_the_command_and_goes_on_when_its_time_was_up(code: int) -> None:
    fake("srun", f"exit {code}")
    fake("scontrol", "")
    text = script(SlurmJob(command=ODD, name="a b", nodes=3, gpus=2, setup=("export SEEN=1",)))
    done = subprocess.run(["/bin/bash"], input=text, text=True, check=False, env=os.environ | {"SLURM_JOB_ID": "7"})
    assert done.returncode == code
    step = recorded("srun")
    assert tuple(step[step.index("xlstm") + 1 :]) == ODD
    options = {"--kill-on-bad-exit=1", "--nodes=3", "--ntasks-per-node=1", "--gpus-per-node=2"}
    assert options <= set(step[: step.index("xlstm")])
    assert (recorded("scontrol") if Path("scontrol").exists() else []) == (["requeue", "7"] if code == 140 else [])


def test_a_setup_that_fails_ends_the_job() -> None:
    fake("srun", "")
    text = script(SlurmJob(command=("version",), name="a", setup=("false",)))
    assert subprocess.run(["/bin/bash"], input=text, text=True, check=False).returncode == 1
    assert not Path("srun").exists()


def test_the_script_is_handed_to_sbatch(capsys: pytest.CaptureFixture[str]) -> None:
    call = "slurm -- train tiny --run mine"
    assert launch(call) == 1
    assert "there is no sbatch in PATH" in capsys.readouterr().err
    assert not Path("xlstm-mine.sbatch").exists()
    fake("sbatch", "echo Submitted batch job 4711")
    assert launch(call) == 0
    assert capsys.readouterr().out == "job 4711 of xlstm-mine.sbatch\n"
    assert " train tiny --run mine " in Path(recorded("sbatch")[-1]).read_text()
    fake("sbatch", "echo >&2 'sbatch: error: invalid partition'; exit 1")
    assert launch(call) == 1
    assert "sbatch does not take xlstm-mine.sbatch: sbatch: error: invalid partition" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("slurm", "there is no command to launch"),
        ("slurm --", "there is no command to launch"),
        ("slurm train tiny", "unrecognized arguments: train tiny"),
        ("slurm -- trian tiny", "begins with 'trian', but only train runs"),
        ("slurm -- launch slurm -- train tiny", "begins with 'launch'"),
        ("slurm -- train", "trains nothing"),
        ("slurm -- train --steps 3 tiny", "takes a preset, a run or a file first"),
        ("slurm -- train tiny --stepz 3", "there is no field 'stepz'"),
        ("slurm -- train tiny --mesh fsdpp=3", "fsdpp"),
        ("slurm -- train tiny --run", "--run needs a value after it"),
        ("slurm --nodes 0 -- train tiny", "SlurmJob.nodes is 0"),
        ("slurm --nodes two -- train tiny", "argument --nodes: invalid int value: 'two'"),
        ("slurm --name a/b -- train tiny", "SlurmJob.name is 'a/b', but must be a name without /"),
        ("kubernetes -- train tiny", "required: --image"),
        ("kubernetes --image i --name Big_One -- train tiny", "KubernetesJob.name is 'Big_One'"),
        ("kubernetes --image i --mount work -- train tiny", "must be a path from / on"),
    ],
)
def test_a_wrong_call_is_one_sentence_before_anything_is_handed_in(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake("sbatch", "")
    assert launch(words) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out
    assert not Path("sbatch").exists()


def test_a_line_break_cannot_smuggle_in_an_option() -> None:
    with pytest.raises(ValueError, match=r"SlurmJob.partition is .*one line"):
        SlurmJob(command=("version",), name="a", partition="a\n#SBATCH --nodes=9")


def read(text: str) -> Any:
    return pytest.importorskip("yaml").safe_load(text)


def test_the_jobset_is_an_indexed_job_whose_pods_find_each_other() -> None:
    job = KubernetesJob(command=ODD, name="mine", image="i:1", nodes=3, gpus=8, memory="64Gi", volume_claim="disk")
    whole = read(jobset(job))
    assert (whole["apiVersion"], whole["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert whole["spec"]["failurePolicy"]["maxRestarts"] > 0
    (jobs,) = whole["spec"]["replicatedJobs"]
    pods = jobs["template"]["spec"]
    assert (pods["completionMode"], pods["completions"], pods["parallelism"]) == ("Indexed", 3, 3)
    assert pods["backoffLimit"] == 0
    pod = pods["template"]["spec"]
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Never", 120)
    (container,) = pod["containers"]
    assert tuple(word.replace("$$", "$") for word in container["command"]) == ("xlstm", *ODD)
    assert "$$(id)" in container["command"][3]
    assert container["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": 8}
    claims = {volume["name"]: volume.get("persistentVolumeClaim") for volume in pod["volumes"]}
    places = {mount["mountPath"]: claims[mount["name"]] for mount in container["volumeMounts"]}
    assert places[container["workingDir"]] == {"claimName": "disk"}
    variables = {entry["name"]: entry for entry in container["env"]}
    index = variables["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    # The DNS name that JobSet gives to a pod: JobSet, its job, the number of that, that of the pod; and the subdomain.
    host = f"mine-{jobs['name']}-0-0.{whole['spec']['network']['subdomain']}"
    environ = {name: entry.get("value", "2") for name, entry in variables.items()}
    assert found_in(environ) == Start("explicit", f"{host}:8476", 3, 2)


def test_the_jobset_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("kubernetes --image i --nodes 2 -- train tiny --run runs/My_run.1") == 0
    shown = capsys.readouterr()
    assert '\nmetadata:\n  name: "my-run-1"\nspec:\n' in shown.out
    assert "          completions: 2\n          parallelism: 2\n" in shown.out
    assert '      value: "my-run-1-workers-0-0.my-run-1:8476"\n' in shown.out
    assert "resources" not in shown.out
    assert "without --volume-claim" in shown.err
