"""The build backend: setuptools' for an editable install of a clone; every other one is refused in a sentence."""

from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (what pip asks a backend for)
    build_editable,
    get_requires_for_build_editable,
    prepare_metadata_for_build_editable,
)


def _refused(*_: Any, **__: Any) -> None:
    raise SystemExit(
        "tessera is used from its clone, where configs and models are changed; a copy of names such as `data` and "
        "`models` in site-packages would meet others': run `pip install -e .` in the clone, or `python main.py`."
    )


get_requires_for_build_wheel = build_meta.get_requires_for_build_wheel
prepare_metadata_for_build_wheel = build_wheel = build_sdist = _refused
