"""The report as HTML: one file that loads nothing and runs nothing."""

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from privyseal_ca.report.content import SHOWN_STATES, Report

#: Workloads that are listed at once; the others are behind one more key or click.
_FEW: Final = 10


def render_report(report: Report) -> str:
    """The page. Whatever stands in names, owners and advice is text in it."""
    style, policy = _style()
    return _template().render(report=report, style=style, policy=policy, shown_states=SHOWN_STATES, few=_FEW).lstrip()


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


@cache
def _style() -> tuple[str, str]:
    """The style sheet, and the policy that allows it, and nothing else, by its hash."""
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    digest = b64encode(sha256(style.encode()).digest()).decode()
    # The timeline's bars have attributes for their size, no styles: nothing inline is allowed but this.
    return style, f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
