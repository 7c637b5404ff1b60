"""Names to classes: nearest names, discovery, and saved configurations that can do no harm."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmtransfer import registry as module
from mmtransfer.registry import (
    Configurable,
    Registry,
    check_options,
    encoders,
    fusions,
    import_class,
    methods,
    nearest,
    strategies,
    tasks,
)

FAMILIES = {
    "encoders": encoders,
    "fusions": fusions,
    "tasks": tasks,
    "strategies": strategies,
    "methods": methods,
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes an importable package out of `{module: source}` and gives its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def make(name: str, files: dict[str, str]) -> str:
        (tmp_path / name).mkdir()
        for file, source in {"__init__": "", **files}.items():
            (tmp_path / name / f"{file}.py").write_text(source)
        made.append(name)
        return name

    yield make
    for loaded in [m for m in sys.modules if m.partition(".")[0] in made]:
        del sys.modules[loaded]


@pytest.fixture
def family(package: Any) -> Registry:
    """An empty registry over an empty package."""
    return Registry("shape", package("mmt_empty_shapes", {}))


class Circle:
    """A round one.

    More about it.
    """

    def __init__(self, radius: float, colour: str = "red") -> None:
        self.radius, self.colour = radius, colour


class Square:
    """A flat one."""


def test_nearest_names_the_closest_choice_whatever_the_case_and_lists_all() -> None:
    message = nearest("CONCTA", ["gated", "Concat"])
    assert "Did you mean 'Concat'?" in message
    assert "gated" in message


@pytest.mark.parametrize("valid", [[], ["gated", "concat"]])
def test_nearest_suggests_nothing_when_nothing_is_close(valid: list[str]) -> None:
    message = nearest("zzzzzzzz", valid)
    assert "Did you mean" not in message
    assert (", ".join(valid) or "(none)") in message


def test_unknown_name_raises_with_the_nearest(family: Registry) -> None:
    family.register("circle")(Circle)
    family.register("square")(Square)
    with pytest.raises(ValueError, match=r"unknown shape 'cirkle'.*mean 'circle'.*circle, square"):
        family.get("cirkle")
    assert "circle" in family
    assert "cirkle" not in family


def test_a_name_is_given_once_and_the_error_names_both_owners(family: Registry) -> None:
    family.register("circle")(Circle)
    with pytest.raises(ValueError, match=r"'circle' is taken by .*Circle.*Square"):
        family.register("circle")(Square)
    family.register("circle")(Circle)  # a module that is executed again is no conflict
    assert family.get("circle") is Circle


def test_build_takes_a_name_or_a_mapping_and_leaves_the_mapping_alone(family: Registry) -> None:
    family.register("circle")(Circle)
    spec = {"name": "circle", "colour": "blue"}
    built = family.build(spec, 2.0)
    assert (built.radius, built.colour) == (2.0, "blue")
    assert spec == {"name": "circle", "colour": "blue"}
    assert family.build("circle", 2.0, colour="green").colour == "green"


@pytest.mark.parametrize("spec", [{"name": "circle", "color": "blue"}, "circle"])
def test_unknown_option_raises_with_the_nearest(family: Registry, spec: Any) -> None:
    family.register("circle")(Circle)
    options = {"color": "blue"} if spec == "circle" else {}
    with pytest.raises(ValueError, match="shape 'circle' has no option 'color'.*mean 'colour'"):
        family.build(spec, 2.0, **options)


def test_an_option_that_the_caller_already_gave_is_refused(family: Registry) -> None:
    # `{"name": "concat", "width": 3}` beside a width of its own: not a TypeError from deep inside.
    family.register("circle")(Circle)
    with pytest.raises(ValueError, match="radius"):
        family.build({"name": "circle", "radius": 3.0}, 2.0)


def test_a_mapping_without_a_name_is_refused(family: Registry) -> None:
    family.register("circle")(Circle)
    with pytest.raises(ValueError, match="Valid: circle"):
        family.build({"colour": "blue"}, 2.0)


def test_check_options_lets_everything_pass_to_a_factory_that_takes_everything() -> None:
    def anything(**options: Any) -> None: ...

    check_options(anything, ["whatever"], "shape")
    with pytest.raises(ValueError, match="whatever"):
        check_options(Circle, ["whatever"], "shape")


def test_describe_gives_the_first_line_of_each_docstring_sorted(family: Registry) -> None:
    family.register("square")(Square)
    family.register("circle")(Circle)
    assert list(family.describe().items()) == [
        ("circle", "A round one."),
        ("square", "A flat one."),
    ]


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_member_says_in_one_line_what_it_is(kind: str) -> None:
    described = FAMILIES[kind].describe()
    assert described, f"no {kind} are registered"
    assert [name for name, line in described.items() if not line.endswith((".", ")"))] == []


def test_a_new_member_needs_one_new_file(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = package(
        "mmt_shapes",
        {"star": "from mmt_shapes_home import shapes\n@shapes.register('star')\nclass Star: ..."},
    )
    found = Registry("shape", name)
    monkeypatch.setitem(sys.modules, "mmt_shapes_home", SimpleNamespace(shapes=found))  # type: ignore[arg-type]
    assert found.names() == ["star"]


def test_packages_ship_members_but_cannot_replace_ours(
    family: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    family.register("circle")(Circle)
    shipped = [
        SimpleNamespace(name="circle", load=lambda: Square),
        SimpleNamespace(name="square", load=lambda: Square),
    ]
    asked = []
    monkeypatch.setattr(module, "entry_points", lambda group: asked.append(group) or shipped)
    assert family.get("square") is Square
    assert family.get("circle") is Circle
    assert asked == [family.package]


def test_a_failed_discovery_does_not_leave_a_half_filled_registry(package: Any) -> None:
    broken = Registry("shape", package("mmt_broken", {"bad": "raise ImportError('no such part')"}))
    for _ in range(2):  # the second look-up must not pretend that all is well
        with pytest.raises(ImportError, match="no such part"):
            broken.names()


def test_import_class_finds_the_class_or_names_what_is_missing(package: Any) -> None:
    name = package("mmt_plugin", {"parts": "class Widget: ...", "needy": "import mmt_absent"})
    assert import_class(f"{name}.parts:Widget").__name__ == "Widget"
    with pytest.raises(ValueError, match="no such class.*mean 'Widget'"):
        import_class(f"{name}.parts:Wigdet")
    with pytest.raises(ValueError, match="no module 'mmt_absent' can be imported"):
        import_class(f"{name}.needy:Widget")  # the module is there, what it needs is not
    with pytest.raises(ValueError, match="no module 'mmt_nowhere'"):
        import_class("mmt_nowhere.parts:Widget")


@pytest.mark.parametrize("path", ["", ":", "json", "json:", ":Widget", ".json:JSONDecoder"])
def test_import_class_refuses_what_is_no_class_path(path: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        import_class(path)


class Shape(Configurable):
    def __init__(self, size: int, colours: list[str] | None = None) -> None:
        self.size, self.colours = size, colours


class Forgetful(Shape):
    def __init__(self, size: int, secret: int = 0) -> None:
        super().__init__(size)


CALLS: list[Any] = []


class Outsider:
    def __init__(self, *arguments: Any, **options: Any) -> None:
        CALLS.append((arguments, options))


def test_configuration_comes_back_as_it_was() -> None:
    config = Shape(3, ["red"]).config()
    twin = Configurable.from_config(config)
    assert type(twin) is Shape
    assert twin.config() == config
    assert (twin.size, twin.colours) == (3, ["red"])


def test_from_config_leaves_the_configuration_alone() -> None:
    config = Shape(3).config()
    before = dict(config)
    Shape.from_config(config)
    assert config == before


def test_an_argument_that_was_not_kept_is_named() -> None:
    with pytest.raises(ValueError, match=r"Forgetful cannot be saved.*'secret'.*self\.secret"):
        Forgetful(3).config()


@pytest.mark.parametrize("name", ["Outsider", "CALLS", "test_from_config_refuses_other_kinds"])
def test_from_config_refuses_other_kinds(name: str) -> None:
    CALLS.clear()
    with pytest.raises(ValueError, match="is not a Shape"):
        Shape.from_config({"class": f"{__name__}:{name}", "size": 1})
    assert CALLS == []


def test_from_config_never_starts_a_program(tmp_path: Path) -> None:
    mark = tmp_path / "called"
    with pytest.raises(ValueError, match="'subprocess:Popen' is not a Shape"):
        Shape.from_config({"class": "subprocess:Popen", "args": ["touch", str(mark)]})
    assert not mark.exists()


@pytest.mark.parametrize("config", [{}, {"class": None}, {"class": 3}])
def test_from_config_needs_a_class(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no 'class' entry"):
        Shape.from_config(config)


def test_from_config_names_an_option_that_the_class_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"'colors'.*'colours'"):
        Shape.from_config({"class": f"{__name__}:Shape", "size": 1, "colors": []})


def test_libraries_of_single_members_wait_until_these_are_used() -> None:
    code = "import sys; from mmtransfer.registry import methods, strategies, fusions\n"
    code += "found = methods.names() + strategies.names() + fusions.names()\n"
    code += "print(len(found), [n for n in ('sklearn', 'scipy', 'peft') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, loaded = done.stdout.split(maxsplit=1)
    assert int(count) > 30
    assert loaded == "[]\n"
