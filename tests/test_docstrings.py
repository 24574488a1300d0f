"""Docstrings of the pack's own code, read from its syntax trees: present, well begun, and exact about tensors.

A docstring counts as exact about tensors where it states a shape, as a bracketed list of dimensions (`[B, C, H, W]`),
`scalar`, `flat` or `any shape`, and a dtype, by its name (float32, bf16, uint8, ...) or in words with "dtype" (compute
dtype, any dtype, the input's dtype). It has to wherever a signature names `torch.Tensor` itself, however deep inside
other types, or an alias of such a type (`TextConditioning`). Classes that hold tensors (`PackedLatents`, `Batch`) state
it once, at each field, and the functions that take them need not repeat it. Parameters and modules of torch are not
meant: their shapes are the model's.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import PurePosixPath

import pytest

from .source_tree import Definition, Function, Modules, attributes, definitions, docstrings, syntax_trees

MODULES = syntax_trees()

SHAPE = re.compile(r"\[[\w .+*/()'-]+(, [\w .+*/()'-]+)*(, \.\.\.)?\]|\b(scalar|flat|any shape)\b", re.IGNORECASE)
DTYPE = re.compile(r"\b(float(8|16|32|64)|bfloat16|bf16|fp(8|16|32)|u?int(8|16|32|64)|bool|dtypes?)\b")
BEGINNING = re.compile(r"(Of|What|That|Whether|How|Where|From|The same)\b")

EXTERNAL = {
    "ComfyNode": {"define_schema", "fingerprint_inputs", "validate_inputs", "execute"},
    "ComfyExtension": {"get_node_list"},
    "Module": {"extra_repr"},
    "Linear": {"extra_repr"},
}
"""Methods that other packages' base classes document."""


def is_alias(statement: ast.stmt, tensor_types: set[str]) -> bool:
    """Tell whether a module-level assignment makes an alias of a type with tensors in it."""
    value = statement.value if isinstance(statement, ast.Assign) else None
    return isinstance(value, ast.Subscript | ast.BinOp | ast.Attribute) and names_any(value, tensor_types)


def names_any(annotation: ast.expr | None, names: set[str]) -> bool:
    """Tell whether an annotation, quoted or not, has one of these names in it."""
    return annotation is not None and not names.isdisjoint(re.findall(r"\w+", ast.unparse(annotation)))


def tensor_types(modules: Modules) -> set[str]:
    """`Tensor` and the names of all aliases of types with tensors in them."""
    found = {"Tensor"}
    while True:
        aliases = {
            name
            for module in modules.values()
            for name, statement, _, _ in attributes(module)
            if is_alias(statement, found)
        }
        if aliases <= found:
            return found
        found |= aliases


class Hierarchy:
    """Base classes and protocols of the pack's classes."""

    def __init__(self, modules: Modules) -> None:
        self.classes: dict[str, ast.ClassDef] = {}
        for definition in definitions(modules):
            if isinstance(definition.node, ast.ClassDef):
                self.classes.setdefault(definition.node.name, definition.node)
        self.protocols = [node for node in self.classes.values() if "Protocol" in map(ast.unparse, node.bases)]

    def bases(self, node: ast.ClassDef) -> list[str]:
        """Names of a class's bases, direct and indirect, the pack's and others', without their packages."""
        found = []
        for base in node.bases:
            name = ast.unparse(base).split("[")[0].split(".")[-1]
            found.append(name)
            if name in self.classes and self.classes[name] is not node:
                found += self.bases(self.classes[name])
        return found

    def methods(self, node: ast.ClassDef) -> dict[str, list[Function]]:
        """All definitions of every method of a class, its own and those of the pack's classes that it inherits."""
        found: dict[str, list[Function]] = {}
        for owner in (node, *(self.classes[name] for name in self.bases(node) if name in self.classes)):
            for member in owner.body:
                if isinstance(member, Function):
                    found.setdefault(member.name, []).append(member)
        return found

    def is_documented_by_base(self, definition: Definition) -> bool:
        """Tell whether a method overrides one that has a docstring, or implements that of a protocol: a class that has
        all methods of a protocol implements it, whether it says so or not."""
        if definition.owner is None:
            return False
        method, methods = definition.name.split(".")[-1], self.methods(definition.owner)
        implemented = [
            node
            for node in self.protocols
            if node is not definition.owner and self.methods(node).keys() <= methods.keys()
        ]
        overridden = [
            *methods[method],
            *(member for node in implemented for member in self.methods(node).get(method, [])),
        ]
        return any(member is not definition.node and ast.get_docstring(member) for member in overridden) or any(
            method in EXTERNAL.get(base, ()) for base in self.bases(definition.owner)
        )


def annotations(node: Function) -> list[ast.expr | None]:
    """The annotations of all parameters and of the result."""
    arguments = node.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return [*(parameter.annotation for parameter in parameters if parameter), node.returns]


def states_tensors(text: str) -> bool:
    """Tell whether a docstring states a shape and a dtype."""
    return bool(SHAPE.search(text) and DTYPE.search(text))


def missing_docstrings(modules: Modules) -> list[str]:
    """Public classes, functions and methods that neither have a docstring nor override one that has."""
    hierarchy = Hierarchy(modules)
    return [
        f"{definition} has no docstring"
        for definition in definitions(modules)
        if definition.is_public()
        and not ast.get_docstring(definition.node)
        and not hierarchy.is_documented_by_base(definition)
    ]


def poor_beginnings(modules: Modules) -> list[str]:
    """Docstrings that begin with neither a verb nor a noun phrase."""
    return [
        f"{path}:{line} begins with {match[0]!r}"
        for path, module in modules.items()
        for line, text in docstrings(module)
        if (match := BEGINNING.match(text.strip()))
    ]


def vague_about_tensors(modules: Modules) -> list[str]:
    """Public functions with tensors in their signatures, and public fields that are tensors, whose docstrings lack a
    shape or a dtype."""
    names, hierarchy, found = tensor_types(modules), Hierarchy(modules), []
    for definition in definitions(modules):
        node, owner = definition.node, definition.owner
        if isinstance(node, ast.ClassDef):
            found += [
                f"{definition.path}:{statement.lineno} {definition.name}.{name} states no shape or no dtype"
                for name, statement, text, _ in attributes(node)
                if definition.is_public() and isinstance(statement, ast.AnnAssign) and not name.startswith("_")
                if names_any(statement.annotation, names) and not states_tensors(text)
            ]
            continue
        constructor = owner is not None and node.name == "__init__" and not definition.name.startswith("_")
        if not (constructor or definition.is_public()) or hierarchy.is_documented_by_base(definition):
            continue
        text = (ast.get_docstring(node) or "") + (ast.get_docstring(owner) or "" if constructor else "")
        if text and not states_tensors(text) and any(names_any(annotation, names) for annotation in annotations(node)):
            found.append(f"{definition} states no shape or no dtype")
    return found


CHECKS = (missing_docstrings, poor_beginnings, vague_about_tensors)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_docstrings_of_the_pack(check: Callable[[Modules], list[str]]) -> None:
    assert check(MODULES) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("def crop(size):\n    return size", "crop has no docstring"),
        ("class Crop:\n    size = 1", "Crop has no docstring"),
        ('class Crop:\n    """A crop."""\n    def size(self):\n        return 1', "Crop.size has no docstring"),
        (
            'class Crop:\n    """A crop."""\n    def of(self):\n        """What it is."""',
            "begins with 'What'",
        ),
        ('class Crop:\n    """A crop."""\n    size: int\n    """Of the crop."""', "begins with 'Of'"),
        ('def crop(x: torch.Tensor):\n    """Crop [B, C, H, W]."""', "crop states no shape or no dtype"),
        ('def crop(x: "torch.Tensor"):\n    """Crop in float32."""', "crop states no shape or no dtype"),
        ('def crop(size) -> list[Tensor | None]:\n    """Crop it."""', "crop states no shape or no dtype"),
        ('Named = Mapping[str, Tensor]\ndef crop(x: Named):\n    """Crop it."""', "crop states no shape or no dtype"),
        ('class Crop:\n    """A crop."""\n    pixels: Tensor\n    """Pixels."""', "Crop.pixels states no shape"),
        ('class Crop:\n    """A crop."""\n    def __init__(self, x: Tensor):\n        pass', "Crop.__init__ states no"),
    ],
)
def test_a_planted_fault_is_found(text: str, fault: str) -> None:
    planted = {PurePosixPath("trainer/crop.py"): ast.parse(text)}
    (found,) = [fault for check in CHECKS for fault in check(planted)]
    assert fault in found


@pytest.mark.parametrize(
    "text",
    [
        'def crop(x: Tensor):\n    """Crop [B, C, H/8, W/8] in the compute dtype."""',
        'def crop(x: Tensor):\n    """Crop a flat bf16 tensor."""',
        'def crop(x: Mapping[str, Tensor]):\n    """Crop tensors of any shape and dtype."""',
        "def _crop(x: Tensor):\n    return x",
        'class Base:\n    """A base."""\n    def crop(self):\n        """Crop."""\n'
        'class Own(Base):\n    """An own."""\n    def crop(self):\n        pass',
        'class Port(Protocol):\n    """A port."""\n    def crop(self, x: Tensor):\n        """Crop [H, W] uint8."""\n'
        'class Own:\n    """An own."""\n    def crop(self, x: Tensor):\n        pass',
    ],
)
def test_good_docstrings_pass(text: str) -> None:
    planted = {PurePosixPath("trainer/crop.py"): ast.parse(text)}
    assert [fault for check in CHECKS for fault in check(planted)] == []
