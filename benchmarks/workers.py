"""The processes of a comparison: one per contender, each in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint import make_checkpoint
from contenders import CARRIED, CONTENDERS, OURS, PEERS, Contender

from exporters import export_onnx
from gpt2kit.torch_engine.load import load

WORKER = Path(__file__).resolve().with_name("worker.py")


class Workers:
    """The environments, the files, and the processes that run."""

    def __init__(self, work: Path, threads: int, rounds: int, stack: ExitStack) -> None:
        self.work, self.threads, self.rounds, self.stack = work, threads, rounds, stack
        self.running: dict[str, subprocess.Popen[str]] = {}
        work.mkdir(parents=True, exist_ok=True)

    def python(self, env: str) -> str:
        """The interpreter of an environment, which is made on first use."""
        if env == OURS:
            return sys.executable
        folder = self.work / "venv" / env
        done = folder / ".installed"
        if not done.exists():
            print(f"installing {env} …", file=sys.stderr)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            subprocess.run([folder / "bin/pip", "install", "-q", *PEERS[env]], check=True)
            done.touch()
        return str(folder / "bin/python")

    def path(self, contender: Contender) -> Path:
        """The file that an engine runs, made from the checkpoint on first use."""
        checkpoint, path = self.work / "checkpoint", self.work / contender.path
        if not (checkpoint / "model.safetensors").exists():
            checkpoint.mkdir()
            make_checkpoint(checkpoint)
        if not path.exists():
            print(f"converting for {contender.path} …", file=sys.stderr)
            folder = self.work / contender.path.split("/")[0]
            folder.mkdir(exist_ok=True)
            if contender.env == OURS:
                kind = folder.name if folder.name.startswith("int") else None
                taps, edits = CARRIED.get(folder.name, ((), ()))
                export_onnx(
                    load(checkpoint, device="cpu"), path, profile="fused", quantize=kind,
                    taps=taps, edits=edits,
                )  # fmt: skip
            else:
                convert = [self.python(contender.env), str(WORKER), "convert", contender.engine]
                subprocess.run([*convert, str(checkpoint), str(folder)], check=True)
        return path

    def start(self, name: str) -> subprocess.Popen[str]:
        """Start a process that loads this contender."""
        contender = CONTENDERS[name]
        python, file = self.python(contender.env), self.path(contender)
        command = [python, str(WORKER), contender.engine, str(file)]
        process = subprocess.Popen(
            [*command, str(self.threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OPENBLAS_NUM_THREADS": str(self.threads)},
            stderr=(self.work / "stderr.txt").open("a"),
        )  # fmt: skip
        self.stack.callback(process.kill)
        return process

    def run(self, name: str, request: dict[str, Any], ids: list[list[int]]) -> Any:
        """Let one contender serve a request while the others wait."""
        if name not in self.running:
            self.running[name] = self.start(name)
            reply(self.running[name])  # the time that loading took
        return request_of(self.running[name], request | {"ids": ids})


def reply(process: subprocess.Popen[str]) -> Any:
    """The next line that a worker prints."""
    assert process.stdout
    text = process.stdout.readline()
    if not text:
        raise SystemExit("an engine ended; its messages are in stderr.txt")
    return json.loads(text)


def request_of(process: subprocess.Popen[str], request: dict[str, Any]) -> Any:
    """Send a request and wait for its answer."""
    assert process.stdin
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    return reply(process)


def prompt(tokens: int, batch: int = 1) -> list[list[int]]:
    """Random ids (batch, tokens)."""
    drawn: list[list[int]] = np.random.default_rng(0).integers(0, 4095, (batch, tokens)).tolist()
    return drawn
