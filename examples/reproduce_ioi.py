"""Reproduce what is published about indirect object identification in gpt2 (124M).

"When John and Mary went to the shops, John gave the bag to" is followed by " Mary". You see, beside
what the literature says: how sure the model is on the eight prompts of a well-known demo, what the
loss of one head costs, and which heads do it (Wang et al. 2022, arXiv 2211.00593). The facts are of
gpt2 alone: with another model, or where it cannot be had, this says so and exits with 3.

    python examples/reproduce_ioi.py [--model gpt2]
"""

import argparse
import sys

import gpt2kit
from probes.facts.check import check_facts
from probes.facts.published import FACTS
from probes.facts.real_gpt2 import NotTheRealModel, require_gpt2


def main() -> int:
    """The facts of IOI alone; `gpt2kit facts` checks them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gpt2")
    try:
        gpt2 = gpt2kit.load(parser.parse_args().model)
        require_gpt2(gpt2)
    except gpt2kit.GPT2KitError as error:
        print(error, file=sys.stderr)
        return NotTheRealModel.exit_code
    report = check_facts(gpt2, [fact for fact in FACTS if fact.name.startswith("IOI")])
    print(report)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
