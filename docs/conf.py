"""Sphinx configuration."""

from importlib.metadata import version as package_version

from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes

project = "skt_components"
author = "The skt_components developers"
copyright = f"2026, {author}"
release = version = package_version("skt-components")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "gallery"]
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "backreferences_dir": "auto_gallery/backreferences",
    "within_subsection_order": "FileNameSortKey",
    "gallery_dirs": "auto_gallery",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 1000,
}
suppress_warnings = ["config.cache"]  # the gallery's configuration holds functions
html_math_renderer = "mathml"  # drawn by the browser itself, also without a network
html_theme = "furo"
html_title = f"skt_components {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes stand in the signatures and docstrings
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True


def link_names(app, doctree):
    """Link `Name` and `package.Name` to the API, so that the pages need no roles and can be read on GitHub."""
    for code in list(doctree.findall(nodes.literal)):
        name = code.astext().removeprefix("skt_components.")
        inside = isinstance(code.parent, (nodes.reference, nodes.title, addnodes.pending_xref))
        if all(part.isidentifier() for part in name.split(".")) and not inside:
            target = {"refdomain": "py", "reftype": "obj", "reftarget": f"skt_components.{name}", "refwarn": False}
            link = addnodes.pending_xref("", refdoc=app.env.docname, **target)
            code.replace_self(link)
            link += code


def write_formula(translator, node):
    """Write an inline formula as MathML."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def write_display_formula(translator, node):
    """Write a formula in a line of its own as MathML."""
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def list_names(app, doctree):
    """Begin each section of the API page with a table: a link to each name, and its summary."""
    for section in doctree.findall(nodes.section) if app.env.docname == "api" else ():
        body = nodes.tbody()
        for entry in section.children:
            if isinstance(entry, addnodes.desc) and entry[0]["ids"]:
                name, texts = entry[0]["ids"][0], (text.astext() for text in entry[1].findall(nodes.paragraph))
                link = nodes.reference("", "", nodes.literal("", name.rpartition(".")[2]), refid=name)
                summary = next((text for text in texts if not text.startswith("Bases:")), "")
                cells = (nodes.paragraph("", "", link), nodes.paragraph("", summary))
                body += nodes.row("", *(nodes.entry("", cell) for cell in cells))
        if body.children:
            columns = [nodes.colspec(colwidth=width) for width in (1, 2)]
            section.insert(2, nodes.table("", nodes.tgroup("", *columns, body, cols=2)))


def setup(app):
    """Register the functions above."""
    app.add_html_math_renderer("mathml", (write_formula, None), (write_display_formula, None))
    app.connect("doctree-read", link_names)
    app.connect("doctree-read", list_names)
