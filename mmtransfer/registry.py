"""Names to classes: decorators, entry points, and errors that suggest the nearest name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

Member = TypeVar("Member", bound=Callable[..., Any])


def nearest(name: str, valid: Iterable[str]) -> str:
    """A sentence that lists the valid names and the one closest to `name`."""
    valid = list(valid)
    lowered = {choice.lower(): choice for choice in valid}
    close = [low for low in lowered if name and low.startswith(name.lower())]
    close = close or difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    hint = f" Did you mean {lowered[close[0]]!r}?" if close else ""
    return f"{hint} Valid: {', '.join(valid) or '(none)'}."


class Registry:
    """The members of one family (`fusion`, say), found in `package` and in the entry-point group.

    Modules of the package are imported on the first look-up, so a new member needs one new file.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._members: dict[str, Callable[..., Any]] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[Member], Member]:
        """Decorator: make a class or factory available under `name`."""

        def decorate(member: Member) -> Member:
            present = self._members.get(name)
            if present is not None and present.__qualname__ != member.__qualname__:
                raise ValueError(
                    f"{self.kind} name {name!r} is taken by {present.__module__}."
                    f"{present.__qualname__}; choose another name for {member.__qualname__}"
                )
            self._members[name] = member
            return member

        return decorate

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True  # now, so that a look-up during the imports does not start over
        try:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            for entry in entry_points(group=self.package):
                self._load(entry)
        except BaseException:
            self._discovered = False
            raise

    def _load(self, entry: EntryPoint) -> None:
        try:
            self._members.setdefault(entry.name, entry.load())
        except Exception as error:  # a broken plug-in must not take the others along
            warnings.warn(f"{self.kind} plug-in {entry.name!r} left out: {error}", stacklevel=2)

    def names(self) -> list[str]:
        self._discover()
        return sorted(self._members)

    def __contains__(self, name: str) -> bool:
        self._discover()
        return name in self._members

    def get(self, name: str) -> Callable[..., Any]:
        """The member called `name`.  Raises `ValueError` with the nearest valid name."""
        self._discover()
        if name not in self._members:
            raise ValueError(f"unknown {self.kind} {name!r}.{nearest(name, self.names())}")
        return self._members[name]

    def build(self, spec: str | Mapping[str, Any], *arguments: Any, **options: Any) -> Any:
        """Call the member named by `spec`, a name or `{"name": ..., option: value}`.

        Raises `ValueError` for an unknown name or option, with the nearest valid one.
        """
        if isinstance(spec, Mapping):
            options = {**spec, **options}
            spec = str(options.pop("name", None))
        factory = self.get(spec)
        check_options(factory, options, f"{self.kind} {spec!r}", given=len(arguments))
        return factory(*arguments, **options)

    def describe(self) -> dict[str, str]:
        """`{name: first line of its docstring}`, sorted by name."""
        return {name: first_line(self.get(name)) for name in self.names()}


encoders = Registry("encoder", "mmtransfer.encoders")
fusions = Registry("fusion", "mmtransfer.fusion")
tasks = Registry("task", "mmtransfer.tasks")
strategies = Registry("strategy", "mmtransfer.transfer")
methods = Registry("method", "mmtransfer.methods")
scores = Registry("score", "mmtransfer.selection.scores")

register_encoder = encoders.register
register_fusion = fusions.register
register_task = tasks.register
register_strategy = strategies.register
register_method = methods.register
register_score = scores.register


def first_line(described: Any) -> str:
    """Of its docstring."""
    return (inspect.getdoc(described) or "").split("\n")[0]


def import_class(path: str) -> Any:
    """The object named by `package.module:Class`.

    Raises `ValueError` naming the module or the nearest class when it is not there.
    """
    module_name, _, class_name = path.partition(":")
    if not class_name or not module_name or module_name.startswith("."):
        raise ValueError(f"{path!r} names no class: expected package.module:Class")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{path!r}: no module {error.name!r} can be imported") from error
    if not hasattr(module, class_name):
        classes = [name for name, value in vars(module).items() if inspect.isclass(value)]
        raise ValueError(f"{path!r}: no such class.{nearest(class_name, classes)}")
    return getattr(module, class_name)


def check_options(
    factory: Callable[..., Any], options: Iterable[str], what: str, given: int = 0
) -> None:
    """Raise `ValueError` for an option that `factory` does not take, with the nearest valid one."""
    signature = list(inspect.signature(factory).parameters.values())
    taken = {p.name for p in signature[:given]}  # by the caller, in their positions
    for option in options:
        if option in taken:
            raise ValueError(f"{what} gets its {option!r} from elsewhere: leave this option out")
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature):
        return
    parameters = [p.name for p in signature[given:]]
    for option in options:
        if option not in parameters:
            raise ValueError(f"{what} has no option {option!r}.{nearest(option, parameters)}")


class Configurable:
    """Saves and rebuilds itself from its constructor arguments, kept as attributes of that name."""

    def config(self) -> dict[str, Any]:
        """`{"class": "package.module:Class", argument: value, ...}`, ready for JSON."""
        cls = type(self)
        values: dict[str, Any] = {"class": f"{cls.__module__}:{cls.__qualname__}"}
        for name, parameter in inspect.signature(cls).parameters.items():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            if not hasattr(self, name):
                raise ValueError(
                    f"{cls.__qualname__} cannot be saved: keep the constructor argument {name!r} "
                    f"as the attribute self.{name}, or override config()"
                )
            values[name] = getattr(self, name)
        return values

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Rebuild from `config()`.  Raises `ValueError` unless the class is a `cls`."""
        options = dict(config)
        path = options.pop("class", None)
        if not isinstance(path, str):
            raise ValueError(f"a saved {cls.__name__} has no 'class' entry: {config}")
        found = import_class(path)
        # A saved file may name any importable object: only our own kind is ever called.
        if not (inspect.isclass(found) and issubclass(found, cls)):
            raise ValueError(f"{path!r} is not a {cls.__name__}")
        check_options(found, options, f"the saved {path!r}")
        return found(**options)
