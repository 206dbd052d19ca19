"""Drafters whose tree has a known shape."""

import dataclasses

from models.decoding.drafts import Drafter, templates
from models.decoding.drafts.trees import Template


@dataclasses.dataclass(frozen=True)
class Templated(Drafter):
    """Drafts of the tree that `template` names (`templates.named`)."""

    template: str

    @property
    def tree(self) -> Template:
        """The tree of the drafts."""
        return templates.named(self.template)

    @property
    def branches(self) -> bool:
        """Whether the template is more than a chain."""
        return not templates.is_chain(self.tree)

    @property
    def nodes(self) -> int:
        """The last token and the drafts."""
        return len(self.tree.parent)

    @property
    def depth(self) -> int:
        """See `Drafter`."""
        return int(self.tree.depth.max()) + 1
