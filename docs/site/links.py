"""Links from names in running text that are set as code to their entries in the reference."""

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

import reference


class CodeLinks(SphinxTransform):
    """Makes a public name in running text that is set as code a link to its entry."""

    default_priority = 400

    def apply(self, **kwargs):
        """Changes the document."""
        for literal in list(self.document.findall(nodes.literal)):
            name = reference.named(literal.astext())
            if name is None or _is_linked(literal) or _own_entry(literal) == name:
                continue
            link = addnodes.pending_xref(
                "", refdomain="py", reftype="obj", reftarget=name, refexplicit=True, refwarn=True
            )
            link["refdoc"] = self.env.docname
            literal.replace_self(link)
            link += literal


def _is_linked(node):
    while node is not None:
        if isinstance(node, (nodes.reference, nodes.title, addnodes.pending_xref)):
            return True
        node = node.parent
    return False


def _own_entry(node):
    while node is not None:
        if isinstance(node, addnodes.desc):
            for signature in node.findall(addnodes.desc_signature):
                return f"{signature['module'] or ''}.{signature['fullname']}".strip(".")
        node = node.parent
    return None


def setup(app: Sphinx) -> dict:
    """Changes what Sphinx reads."""
    app.add_transform(CodeLinks)
    return {"parallel_read_safe": True}
