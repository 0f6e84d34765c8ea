"""What the TensorRT-LLM at hand looks like: where its classes live and what they take.

Found by importing and `inspect` alone, against the layouts in trtllm_contract.toml; the adapter
asks `Capabilities` and never a version. A layout it does not know is an error that says what was
looked for. `python -m dsa_profiler.workloads.trtllm_probe` prints the probe as JSON for `doctor`.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, resources, util
from types import ModuleType
from typing import Any

from dsa_profiler.errors import DsaError, EnvironmentFault

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONTAINER = "run in NVIDIA's TensorRT-LLM container (1.2.0rc5 or newer)"
OPTIONAL = {"with_multi_stream", "QuantConfig", "MLA"}
"""Names the adapter can do without; a probe that lacks one says so."""


@dataclass(frozen=True, slots=True)
class Place:
    """A name's module and the parameters that the adapter counts on."""

    module: str
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The package as found. `where` is a name's module, `parameters` what its call takes."""

    version: str
    where: Mapping[str, str]
    parameters: Mapping[str, tuple[str, ...]]
    missing: tuple[str, ...] = ()

    def get(self, name: str) -> Any:
        return getattr(import_module(self.where[name]), name)

    def module(self, name: str) -> ModuleType:
        """The module that a name was defined in, where its own helpers lie too."""
        return import_module(self.get(name).__module__)

    def takes(self, name: str, parameter: str) -> bool:
        return parameter in self.parameters[name]

    def one_of(self, name: str, *keywords: str) -> str:
        """The keyword, of several spellings over the years, that this package's `name` takes."""
        for keyword in keywords:
            if self.takes(name, keyword):
                return keyword
        raise unknown_layout(
            self.version,
            f"{self.where[name]}.{name} takes none of {', '.join(keywords)}, "
            f"but ({', '.join(self.parameters[name])})",
        )


def contract() -> dict[str, dict[str, Place]]:
    """The known layouts: era -> name -> place, each era completed by the ones before it."""
    text = resources.files(__package__).joinpath("trtllm_contract.toml").read_text("utf-8")
    eras: dict[str, dict[str, Place]] = {}
    names: dict[str, Place] = {}
    for era, table in tomllib.loads(text).items():
        stated = {n: Place(p["module"], tuple(p["parameters"])) for n, p in table["names"].items()}
        names = {**names, **stated}
        eras[era] = names
    return eras


def probe() -> Capabilities:
    """Look at the installed package. Importing it needs libcuda and its C++ libraries."""
    if util.find_spec("tensorrt_llm") is None:
        raise EnvironmentFault("trtllm-missing", "tensorrt_llm is not installed", CONTAINER)
    try:
        package = import_module("tensorrt_llm")
    except Exception as error:  # its C++ libraries fail in many ways
        raise EnvironmentFault(
            "trtllm-unloadable",
            f"tensorrt_llm cannot be imported: {type(error).__name__}: {error}".splitlines()[0],
            f"{CONTAINER}, with a GPU and its driver",
        ) from None
    version = str(getattr(package, "__version__", "unknown"))
    where, parameters = {}, {}
    missing = []
    for name, modules in _candidates().items():
        try:
            found = _find(name, modules)
        except ImportError as error:
            raise EnvironmentFault(
                "trtllm-dependency",
                f"tensorrt_llm {version} is there, but what {name} needs is not: {error}",
                f"{CONTAINER}, unchanged: DeepGEMM and FlashMLA come with it",
            ) from None
        if found is None:
            missing.append(name)
        else:
            where[name], parameters[name] = found
    needed = [name for name in missing if name not in OPTIONAL]
    if needed:
        looked = "; ".join(f"{n} in {' or '.join(_candidates()[n])}" for n in needed)
        raise unknown_layout(version, f"not found: {looked}")
    return Capabilities(version, where, parameters, tuple(missing))


def unknown_layout(version: str, found: str) -> EnvironmentFault:
    return EnvironmentFault(
        "trtllm-layout",
        f"tensorrt_llm {version} has a layout that the adapter does not know: {found}",
        "report it with the output of `dsa-profiler doctor --contract`, "
        "or use a version between 1.2.0rc5 and 1.3.0rc2x",
    )


def drift(found: Capabilities) -> dict[str, list[str]]:
    """How the package differs from each known layout: era -> what is elsewhere or not taken."""
    out = {}
    for era, names in contract().items():
        lines = []
        for name, place in names.items():
            if name not in found.where:
                lines.append(f"{name}: absent")
                continue
            if found.where[name] != place.module:
                lines.append(f"{name}: in {found.where[name]}, not {place.module}")
            lacks = [p for p in place.parameters if not found.takes(name, p)]
            if lacks:
                lines.append(f"{name}: does not take {', '.join(lacks)}")
        out[era] = lines
    return out


def _candidates() -> dict[str, tuple[str, ...]]:
    """Every module in which some era keeps a name, the newest first."""
    modules: dict[str, dict[str, None]] = {}
    for names in reversed(list(contract().values())):
        for name, place in names.items():
            modules.setdefault(name, {}).setdefault(place.module)
    modules["KvCacheConfig"].setdefault("tensorrt_llm.bindings.executor")
    modules["DeepSeekSparseAttentionConfig"].setdefault("tensorrt_llm._torch.model_config")
    return {name: tuple(found) for name, found in modules.items()}


def _find(name: str, modules: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
    """The first module that has `name`. A module that is there and cannot be imported is raised:
    then a package that it needs is missing, which no other layout would cure.
    """
    for module in modules:
        try:
            thing = getattr(import_module(module), name)
        except AttributeError:
            continue
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise
            continue
        return module, _parameters(thing)
    return None


def _parameters(thing: Any) -> tuple[str, ...]:
    """What a call takes. pydantic models tell by their fields, enums and C++ types not at all."""
    fields = getattr(thing, "model_fields", None)
    if isinstance(fields, Mapping):
        return tuple(fields)
    try:
        return tuple(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        return ()


def main() -> int:
    """Print the probe, and its drift from the known layouts, as one JSON document."""
    try:
        found = probe()
    except DsaError as error:
        print(json.dumps({"ok": False, "what": error.what, "cure": error.cure}))
        return int(error.exit_code)
    print(
        json.dumps(
            {
                "ok": True,
                "version": found.version,
                "missing": found.missing,
                "where": found.where,
                "parameters": found.parameters,
                "drift": drift(found),
            },
            indent=1,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
