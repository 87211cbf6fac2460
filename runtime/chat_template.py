"""The checkpoint's own chat template, rendered in a sandbox; apart from prompts.py, which needs no Jinja."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from radvlm_edge.errors import BundleError


class _Generation(Extension):
    """Accepts transformers' `{% generation %}` block, which only marks training targets."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    """Compiling takes longer than decoding a token of a small model: once for all questions."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation]
    )
    return environment.from_string(template)


def render_messages(template: str, messages: Sequence[Mapping[str, object]]) -> str:
    """Prompt text of `messages`, the assistant's turn begun. Raises BundleError if it does not render."""
    try:
        return _compiled(template).render(messages=messages, add_generation_prompt=True)
    except TemplateError as error:
        raise BundleError(
            f"the bundle's chat template does not render: {' '.join(str(error).split())}"
        ) from error
    except Exception as error:  # a template is a program: it may raise anything
        raise BundleError(f"the bundle's chat template does not render: {type(error).__name__}") from error
