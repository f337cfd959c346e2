"""Fit the tuned lens that ships beside the bundled model, and measure it.

    python tools/fit_lens.py --corpus FOLDER

FOLDER holds stories, as for tools/train_bundled.py, which fits the lens of a new model itself. The
lens is fitted on training stories and measured on validation stories; held-out.txt has no part in
it. The same seed on the same machine gives the same lens.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from corpus import Corpus, Stories, load_corpus
from measure import open_model
from numpy.typing import NDArray
from rendering import table
from tokenizers import Tokenizer

from gpt2kit import TorchRunner
from gpt2kit.shipped import BUNDLED, LENS_FILE
from gpt2kit.taps import residual_stream
from probes import TunedLens, train_tuned_lens, tuned_lens

STEPS, ROWS, RATE = 600, 4, 3e-3  # chosen by the loss on validation stories
EVERY = 100  # steps between lines on the screen


@dataclass(frozen=True)
class LensLoss:
    """Mean KL in nats from a lens' readings to the model's own prediction, layer by layer.

    logit, tuned: (layer,) of the logit lens and of the tuned lens, the embedding first.
    """

    logit: NDArray[np.floating]
    tuned: NDArray[np.floating]

    def table(self) -> str:
        """A Markdown table, one row for each translator."""
        taps = residual_stream(len(self.tuned))[:-1]
        losses = zip(taps, self.logit, self.tuned, strict=True)
        rows = [(f"`{tap}`", f"{logit:.3f}", f"{tuned:.3f}") for tap, logit, tuned in losses]
        return table(("KL to the model's prediction, nats", "logit lens", "tuned lens"), rows)


def mean_kl(runner: TorchRunner, lens: TunedLens, stories: Stories) -> NDArray[np.floating]:
    """(layer,) mean KL in nats over the tokens of some stories, each cut to the context."""
    width = runner.config.n_positions
    kl = [tuned_lens(runner, story[:width].tolist(), lens, top_k=1).kl for story in stories.tokens]
    mean: NDArray[np.floating] = np.concatenate(kl, axis=1).mean(axis=1)[:-1]
    return mean


def fit_lens(folder: Path, corpus: Corpus, *, steps: int = STEPS, seed: int = 0) -> None:
    """Fit a lens to the model in `folder` and write it beside the model, in float16.

    Raises SystemExit if the stories are encoded with another tokenizer than the model's.
    """
    runner = open_model(folder, corpus)
    began = time.monotonic()

    def show(step: int, losses: NDArray[np.floating]) -> None:
        if step % EVERY == 0:
            seconds = time.monotonic() - began
            print(f"lens step {step:5d}  KL {losses.mean():.4f}  {seconds:5.0f} s", flush=True)

    lens = train_tuned_lens(
        runner, np.concatenate(corpus.train.tokens).tolist(),
        steps=steps, batch=ROWS, length=runner.config.n_positions, lr=RATE, seed=seed,
        on_progress=show,
    )  # fmt: skip
    weight, bias = lens.weight.astype(np.float16), lens.bias.astype(np.float16)
    replace(lens, source="bundled", weight=weight, bias=bias).save(folder / LENS_FILE)


def measure_lens(runner: TorchRunner, folder: Path, corpus: Corpus) -> LensLoss:
    """The loss on validation stories of the lens in `folder`, which belongs to `runner`."""
    return LensLoss(
        logit=mean_kl(runner, TunedLens.identity(runner), corpus.validation),
        tuned=mean_kl(runner, TunedLens.load(folder / LENS_FILE), corpus.validation),
    )


def main() -> None:
    """Fit the lens, and print its losses."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", type=Path, default=BUNDLED, metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"{STEPS}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vocab_size = Tokenizer.from_file(str(options.model / "tokenizer.json")).get_vocab_size()
    corpus = load_corpus(options.corpus, vocab_size)
    fit_lens(options.model, corpus, steps=options.steps, seed=options.seed)
    print(measure_lens(open_model(options.model, corpus), options.model, corpus).table())


if __name__ == "__main__":
    main()
