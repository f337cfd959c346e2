"""Reproduce published results on indirect object identification in gpt2 (124M).

"When John and Mary went to the shops, John gave the bag to" is followed by " Mary". You see our
numbers beside the published ones (Wang et al. 2022, arXiv 2211.00593): how sure the model is on the
eight prompts of a well-known demo, how much it loses without one head, and which heads do the work.
The facts hold for gpt2 alone. With another model, or if gpt2 cannot be loaded, the exit code is 3.

    python examples/reproduce_ioi.py [--model gpt2]
"""

import argparse
import sys

import gpt2kit
from probes.facts.check import check_facts
from probes.facts.published import FACTS
from probes.facts.real_gpt2 import NotTheRealModel, require_gpt2


def main() -> int:
    """Check the facts about IOI; `gpt2kit facts` checks all facts."""
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
