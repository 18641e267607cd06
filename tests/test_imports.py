"""Imports point one way, and light modules stay light. Read from the sources, so that imports inside functions count too."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
OURS = ("rbft", "ray_jobs", "serve", "miniature")
HEAVY = ("ray", "vllm", "deepspeed", "torch", "transformers")

# docs/architecture.md, "Imports point one way": a part imports parts of its own layer or of those before it.
LAYERS = (
    ("api", "errors", "log_fields", "records", "seeds"),
    ("systems", "task"),
    ("config",),
    ("artifacts", "keys", "layout", "pages", "cores", "storage", "parent", "model_folder", "model_store"),
    ("attempts", "lease", "rows", "video"),
    ("data", "models"),
    ("engines",),
    ("rationales", "training", "evaluation", "baselines"),
    ("client", "doctor", "plan", "run_status", "review", "service_verbs", "starter", "importing", "cli"),
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}


@cache
def _modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of ours."""
    found = {}
    for package in OURS:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def _imports(module: str) -> frozenset[str]:
    """The dotted names that `module` imports anywhere in its source; "from a import b" counts as a.b where that is a module, else as a."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(_modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import; say whose"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names.update(name if name in _modules() else str(node.module) for name in full)
    return frozenset(names)


def _part(module: str) -> str | None:
    """The part of the library that `module` belongs to: "rbft.video.decode" -> "video"; None for `rbft` itself and for others."""
    first, *rest = module.split(".")
    return rest[0] if first == "rbft" and rest else None


def test_every_part_of_the_library_has_a_layer() -> None:
    parts = {part for module in _modules() if (part := _part(module)) is not None}
    assert parts - RANK.keys() == set()


def test_imports_within_the_library_point_one_way() -> None:
    wrong = [
        f"{module} imports {name}"
        for module in _modules()
        for name in _imports(module)
        if (importer := _part(module)) and (imported := _part(name)) and RANK[imported] > RANK[importer]
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    ours = {module for module in _modules() if not module.startswith("miniature")}  # its scripts may start one another
    graph = {module: _imports(module) & ours - {module} for module in ours}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("rbft", ("ray", "ray_jobs", "serve", "miniature", "tests")),
        ("ray_jobs", ("serve", "miniature", "tests")),
        ("serve", ("miniature", "tests")),
        ("miniature", ("tests",)),
    ],
)
def test_a_package_does_not_know_those_above_it(package: str, forbidden: tuple[str, ...]) -> None:
    wrong = [
        f"{module} imports {name}"
        for module in _modules()
        if module.split(".")[0] == package
        for name in _imports(module)
        if name.split(".")[0] in forbidden
    ]
    assert wrong == []


def test_the_modules_directly_under_rbft_load_no_heavy_library() -> None:
    # These are what the command line, a laptop client and Ray's driver import before they know what they will do.
    light = [module for module, path in _modules().items() if path.parent == REPOSITORY / "rbft"]
    assert "rbft" in light
    code = f"import sys, {', '.join(light)}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_name_in_an_all_exists() -> None:
    missing = []
    for module, path in _modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined, exported = set(), []
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                defined.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                defined.add(node.target.id)
            elif isinstance(node, ast.Assign):
                names = {target.id for target in node.targets if isinstance(target, ast.Name)}
                if "__all__" in names:
                    exported = ast.literal_eval(node.value)
                defined |= names
        missing += [f"{module}.{name}" for name in exported if name not in defined]
    assert missing == []
