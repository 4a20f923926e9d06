"""Methods of the user: `method: my_module:my_method` names a function in a module of the user's own."""

import dataclasses
import difflib
import importlib
import re
from collections.abc import Callable
from types import ModuleType

from mft_jax.config import ExperimentConfig
from mft_jax.conform import first_wrong_field
from mft_jax.errors import UserError, describe_failure
from mft_jax.methods.method import Method

_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")


def make_user_method(name: str, config: ExperimentConfig) -> Method:
    """Calls the function `my_method(config)` in the module `my_module` for the name "my_module:my_method".

    The method that it returns gets this name. Raises UserError, which names what is wrong, if the module or the
    function does not exist, if one of them raises an error, or if the result is not a method that can be run.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise UserError(f"The method {name!r} is no name of a method of your own: write module:function.")
    module = _import(found[1], name)
    method = _call(_function(module, found[2], name), module, name, config)
    _check(method, name)
    # The files of a run are named after it, so it must be the name that the configuration has.
    return dataclasses.replace(method, name=name)


def _import(module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UserError(describe_failure(f"The module {module} of the method {name}", error)) from error
        raise UserError(
            f"The method {name} needs the module {module}, which was not found: put {module.split('.')[0]}.py beside the "
            "configuration file or into the working directory, or install it."
        ) from error
    except (Exception, SystemExit) as error:
        raise UserError(describe_failure(f"The module {module} of the method {name}", error)) from error


def _function(module: ModuleType, attribute: str, name: str) -> Callable[[ExperimentConfig], object]:
    function = getattr(module, attribute, None)
    if callable(function):
        return function
    if function is not None:
        raise UserError(
            f"{attribute} in {module.__file__} is {function!r:.80}, expected a function of the configuration."
        )
    near = difflib.get_close_matches(attribute, [key for key in vars(module) if not key.startswith("_")], n=1)
    meant = f" Did you mean {module.__name__}:{near[0]}?" if near else ""
    raise UserError(f"The method {name} needs the function {attribute}, which {module.__file__} does not have.{meant}")


def _call(
    function: Callable[[ExperimentConfig], object], module: ModuleType, name: str, config: ExperimentConfig
) -> Method:
    try:
        method = function(config)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(describe_failure(f"The method {name} in {module.__file__}", error)) from error
    if not isinstance(method, Method):
        raise UserError(
            f"The method {name} returned {type(method).__name__} {method!r:.80}, expected an mft_jax.Method."
        )
    return method


def _check(method: Method, name: str) -> None:
    """Raises UserError if the method cannot be run."""
    wrong = first_wrong_field(method)
    if wrong is not None:
        field, value, expected = wrong
        raise UserError(f"The method {name} has the {field} {value!r:.80}, expected {expected}.")
    adapters = method.adapters
    if len(set(adapters)) < len(adapters):
        raise UserError(
            f"The method {name} has two lessons for one adapter: {', '.join(adapters)}; expected one for each."
        )
    for adapter in adapters:
        if not isinstance(adapter, str) or not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", adapter):
            raise UserError(
                f"The method {name} has an adapter named {adapter!r}, expected letters, digits and any of _ . -."
            )
    for rules in (method.protocol, method.evaluation):
        rows = rules.speakers
        if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
            raise UserError(
                f"The method {name} has the speakers {rows!r}, expected one row per round with one speaker per agent."
            )
        unknown = [speaker for row in rows for speaker in row if speaker is not None and speaker not in adapters]
        if unknown:
            raise UserError(
                f"The method {name} has the speaker {unknown[0]!r}, but no lesson for it: its adapters are "
                f"{', '.join(adapters) or 'none'}. The base model is None."
            )
