"""The page docs/methods.md: `python -m tests.support.methods_page` writes it again from the table of methods."""

from pathlib import Path
from typing import Final

from gateway.app import GATEWAY, create_app
from gateway.config import Config
from gateway.rpc.openrpc import markdown

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "methods.md"


def page() -> str:
    """What the page must be: every method that a gateway without a user's methods has, by name."""
    methods = create_app(Config())[GATEWAY].dispatcher.methods
    return markdown(entry for _, entry in sorted(methods.items()))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
