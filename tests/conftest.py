"""For every test: a compile cache of the run's own, and --bless for the text files that hold expected output."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Compiling is what an example costs, and a first run costs more than later ones; shrinking would compile hundreds more.
settings.register_profile("devrt", deadline=None, derandomize=True, database=None, print_blob=False,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.load_profile("devrt")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too: all 2^32 arguments, minutes each")
    parser.addoption("--bless", action="store_true", help="write what is produced into the expected-output files")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes: run with --slow"))


@pytest.fixture(scope="session", autouse=True)
def compile_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """$DEVRT_CACHE for the session, unless the caller set one."""
    if (own := os.environ.get("DEVRT_CACHE")) is not None:
        yield Path(own)
        return
    base = tmp_path_factory.getbasetemp()  # of this worker, where several run: they share a cache
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    folder.mkdir(exist_ok=True)
    os.environ["DEVRT_CACHE"] = str(folder)
    yield folder
    del os.environ["DEVRT_CACHE"]


@pytest.fixture(scope="module", autouse=True)
def older_objects() -> None:
    """Collections of garbage in a module's tests pass over what was there before: PyTorch, and what thousands of tests left."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """golden(name, text): `text` is what golden/<name>.txt beside the test holds; --bless writes it there."""
    def check(name: str, text: str) -> None:
        path = request.path.parent / "golden" / f"{name}.txt"
        if request.config.getoption("--bless"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"{path} is missing: run pytest --bless and read the result"
        assert text == path.read_text(), f"differs from {path}: if that is meant, run pytest --bless and read the diff"
    return check
