"""Whether renewals come evenly: certificates that were all issued in one minute, renewed over several generations.

The windows are the product's, with its default settings; the clients are simulated as RFC 9773 section 4.2 has them: a uniform
random moment of the window, asking again after Retry-After. Beside it the same clients when everybody's window is the minute
after two thirds of the life. Ends with status 1 when a peak is more than twice its mean.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fakes.renewing import Fleet, Generation, fixed
from privyseal_ca.renewal.windows import Shape

_BEGIN = 1_800_000_000
_BOUND = 2.0


def show(name: str, generations: list[Generation]) -> None:
    """A line for each generation."""
    for number, each in enumerate(generations, 1):
        print(
            f"{name:>7} {number:>10} {each.peak:>12,} {each.mean:>12,.1f} {each.ratio:>10.2f} {each.minutes:>9,} "
            f"{each.least_left:>10.0%}"
        )


def main() -> int:
    """Run both and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--certificates", type=int, default=100_000)
    parser.add_argument("--lifetime", type=int, default=86_400, help="seconds (default: a day)")
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    def fleet() -> Fleet:
        return Fleet(options.certificates, options.lifetime, begin=_BEGIN, seed=options.seed)

    begun = time.monotonic()
    ours = fleet()
    shaped = ours.renew(options.generations, ours.shaped(Shape()))
    # With one minute for all, each generation is like the first.
    theirs = fleet().renew(1, fixed)
    if options.json:
        print(json.dumps({"shaped": [asdict(each) for each in shaped], "fixed": [asdict(each) for each in theirs]}))
    else:
        print(f"{options.certificates:,} certificates of {options.lifetime:,} s, issued in one minute")
        print("windows generation  peak/minute  mean/minute  peak/mean   minutes  life left")
        show("shaped", shaped)
        show("fixed", theirs)
        print(f"{time.monotonic() - begun:.0f} s")
    return int(any(each.ratio > _BOUND for each in shaped))


if __name__ == "__main__":
    sys.exit(main())
