"""Every public definition says what it is, in the design's words."""

import ast
import re
from collections.abc import Iterator

from tests.architecture.test_imports import PACKAGES, ROOT

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

# Methods of torch, threads and context managers, with their usual meaning.
SELF_EVIDENT = {"forward", "state_dict", "load_state_dict", "close", "run"}
# Classes that have the methods of a documented protocol or of a base in another library, without inheriting from ours.
IMPLEMENTS = {
    "Printer": "Reporter",
    "MessageReporter": "Reporter",
    "ControlReporter": "Reporter",
    "Publisher": "Reporter",
    "SafetensorsCheckpoint": "Checkpoint",
    "PyTorchCheckpoint": "Checkpoint",
}
OVERRIDES = {"OwnCelery.connection", "OwnCelery.connection_for_read", "OwnCelery.connection_for_write"}
# Words of no field, each with the one that the design has for it.
PRIVATE_WORDS = {
    "judged?|judge?ment": "validate, verdict",
    "trough": "the end of a cycle",
    "stretch(es)?": "range of segments",
    "pots?|cook(s|ed|ing)?|tastes?|tasted": "soup, ingredient",
    "doorbells?": "notify",
    "rungs?": "notified",
    "obituar(y|ies)": "lost attempt",
    "pupils?": "student",
    "nobody": "a sentence with a subject",
    "set aside": "selection split, held out",
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "migrations" not in path.parts:
                yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def public(body: list[ast.stmt], outer: ast.ClassDef | None = None) -> Iterator[tuple[Definition, ast.ClassDef | None]]:
    for node in body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        if any(
            ast.unparse(decorator) == "overload" or ".setter" in ast.unparse(decorator)
            for decorator in node.decorator_list
        ):
            continue
        yield node, outer
        if isinstance(node, ast.ClassDef):
            yield from public(node.body, node)


def name_of(node: Definition, outer: ast.ClassDef | None) -> str:
    return f"{outer.name}.{node.name}" if outer else node.name


def bases_of(node: ast.ClassDef) -> set[str]:
    bases = {ast.unparse(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases}
    return bases | ({IMPLEMENTS[node.name]} if node.name in IMPLEMENTS else set())


def test_every_public_definition_has_a_docstring() -> None:
    bases: dict[str, set[str]] = {}
    documented, definitions = set[str](), list[tuple[str, Definition, ast.ClassDef | None]]()
    for path, module in sources():
        for node, outer in public(module.body):
            definitions.append((path, node, outer))
            if isinstance(node, ast.ClassDef):
                bases.setdefault(node.name, set()).update(bases_of(node))
            if ast.get_docstring(node):
                documented.add(name_of(node, outer))

    def inherits(kind: str, method: str) -> bool:
        return any(f"{base}.{method}" in documented or inherits(base, method) for base in bases.get(kind, set()))

    without = {
        f"{path}:{node.lineno} {name_of(node, outer)}": name_of(node, outer)
        for path, node, outer in definitions
        if not ast.get_docstring(node)
        and not (outer and (node.name in SELF_EVIDENT or inherits(outer.name, node.name)))
        and name_of(node, outer) not in OVERRIDES
    }
    assert list(without) == []


def test_a_docstring_begins_with_a_sentence_or_a_name_and_not_with_a_question() -> None:
    questions = re.compile(r"(What|It|They|Told|Whatever|Nobody|So many)\b")
    assert [
        f"{path}:{node.lineno} {name_of(node, outer)}"
        for path, module in sources()
        for node, outer in public(module.body)
        if questions.match(ast.get_docstring(node) or "")
    ] == []


def test_the_words_are_those_of_the_design() -> None:
    pattern = re.compile(rf"\b({'|'.join(PRIVATE_WORDS)})\b", re.IGNORECASE)
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    files += [path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name != "results.md"]
    lines = [
        f"{path.relative_to(ROOT).as_posix()}:{number} {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]
    assert lines == [], f"the design's words: {PRIVATE_WORDS}"
