"""The templates that pages are filled from."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(name: str) -> Template:
    """A template by its file name. Values are escaped; a missing value is an error."""
    environment = Environment(
        loader=PackageLoader("vlaprune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
