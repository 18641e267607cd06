"""How HTML pages of ours are made of templates: escaped, and an unknown name is an error."""

from __future__ import annotations

from typing import Any

import jinja2


def html_environment(package: str, **filters: Any) -> jinja2.Environment:
    """The environment of the templates in `<package>/templates`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment
