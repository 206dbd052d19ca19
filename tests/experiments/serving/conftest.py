"""One server for all tests of this folder."""

import pytest

from tests.experiments.serving import servers


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """Of the run that is served."""
    return servers.trained(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def server(workdir):
    """See `servers.Server`. Left away where what serves HTTP is not installed."""
    for name in ("starlette", "uvicorn", "httpx"):
        pytest.importorskip(name)
    made = servers.started(workdir)
    yield made
    assert made.end() == 0
