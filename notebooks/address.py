"""Writes the address of the published repository into the notebooks: the first line of each, and a badge for Colab.

    python notebooks/address.py https://github.com/OWNER/tessera

Whoever publishes the repository runs it once and commits what it changed; run again, it replaces the address.
"""

import json
import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
_BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
_COLAB = "https://colab.research.google.com/github"


def addressed(notebook: dict, name: str, address: str) -> dict:
    """The notebook (as JSON) of the file `name` with the address; the badge stands below its title.

    Errors: ValueError in one sentence for an address that Colab does not open.
    """
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", address)
    if not found:
        raise ValueError(f"{address!r} is no repository that Colab opens; use e.g. https://github.com/OWNER/tessera.")
    title = notebook["cells"][0]
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    lines = [line for line in "".join(title["source"]).split("\n") if not line.startswith(_BADGE)]
    badge = f"{_BADGE}({_COLAB}/{found[1]}/blob/main/notebooks/{name})"
    lines = [lines[0], "", badge, *(lines[1:] if len(lines) > 1 and not lines[1] else ["", *lines[1:]])]
    lines = [line for i, line in enumerate(lines) if line or not i or lines[i - 1]]  # One blank line between two.
    title["source"] = "\n".join(lines).splitlines(keepends=True)
    source = "".join(first["source"])
    first["source"] = re.sub(r'\AREPOSITORY = "[^"]*"', f'REPOSITORY = "{address}"', source).splitlines(keepends=True)
    return notebook


def main(address: str) -> None:
    """Rewrites every notebook here."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        made = addressed(json.loads(path.read_text("utf-8")), path.name, address)
        path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    try:
        (given,) = sys.argv[1:]
        main(given)
    except ValueError as error:
        sys.exit(f"error: {error if len(sys.argv) == 2 else __doc__}")
