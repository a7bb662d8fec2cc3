"""The modules of the user's own methods: found, not found, or with a mistake of their own."""

from pathlib import Path

import pytest

from gateway.config import ConfigError
from gateway.methods.user import load_methods


def test_a_module_is_imported_by_its_name() -> None:
    assert load_methods("tests.support.sample_methods").__name__ == "tests.support.sample_methods"


@pytest.mark.parametrize("name", ["no_such_module", "no_such_package.module", "tests.support.no_such_module"])
def test_one_that_is_not_there_is_named_with_its_key(name: str) -> None:
    with pytest.raises(ConfigError, match=f'methods.modules: no module "{name}"'):
        load_methods(name)


def test_what_a_module_itself_lacks_is_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lacking.py").write_text("import no_such_module_either")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_either"):
        load_methods("lacking")
