"""Rewards of completions: a tuned reward model, a Python function of the user, or a weighted sum of several."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tunesmith.config import Recipe
from tunesmith.data.examples.prompts import Completion, Scorer
from tunesmith.data.files import function_in, sha256_of_file
from tunesmith.errors import RecipeError, RewardError
from tunesmith.inference.identify import find_model, read_manifest
from tunesmith.metrics.style import habits
from tunesmith.models.loading.checkpoint import MANIFEST
from tunesmith.objectives import Objective
from tunesmith.plugins import plugin
from tunesmith.progress import track

if TYPE_CHECKING:
    from tunesmith.inference.local_model import LocalModel
    from tunesmith.models.batch import StepMetrics

MAX_SHOWN_CHARS = 60
LARGEST = 1e30  # rewards are summed in single precision
_IMPORTED: dict[str, tuple[int, ModuleType]] = {}  # module or file -> modification time of the file, and the module


def check_reward(recipe: Recipe) -> None:
    """Raise RecipeError if the recipe needs a reward and names none that can be used."""
    if recipe.objective.samples_completions:
        scorer(recipe.objective.rewards, key="objective.reward")


def scorer_of(objective: Objective) -> Scorer:
    """Return the scorer of an objective's rewards. Raises RecipeError as `scorer` does."""
    return scorer(objective.rewards, key="objective.reward")


def scorer(reward: str | Mapping[str, float], *, key: str) -> Scorer:
    """Return a function that scores completions by the rewards a recipe names.

    A Python function receives one `Completion` and returns a number; naming it imports its module.

    Args:
        reward: a run of `objective: reward`, `module:function`, `file.py:function`, or several with weights.
        key: recipe key, for errors.

    Returns:
        The scorer. It raises RewardError if a reward fails or returns no number.

    Raises:
        RecipeError: no reward is named, or one cannot be found or imported.
    """
    if not reward:
        last = key.rpartition(".")[2]
        raise RecipeError(
            f"{key} is missing: name a run of objective: reward, or a Python function, "
            f"as {last}: runs/reward or {last}: rules:score"
        )
    weights = {reward: 1.0} if isinstance(reward, str) else reward
    if not any(weights.values()):
        raise RecipeError(f"{key}: all weights are 0, so all completions score the same; give a weight above 0")
    names = dict[tuple[Path, str], str]()
    for name in weights:
        if (first := names.setdefault(in_full(name), name)) != name:
            raise RecipeError(f"{key}: {first} and {name} are the same; list it once, with the sum of the weights")
    scorers = {
        name: _python_reward(name, key)
        if function_in(name)[1]
        else _reward_model(name, key, digests([name]).get(name, ""))
        for name in weights
    }

    def score(completions: Sequence[Completion]) -> list[float]:
        weighted = [[weights[name] * value for value in one(completions)] for name, one in scorers.items()]
        totals = [sum(values) for values in zip(*weighted, strict=True)]
        for completion, total in zip(completions, totals, strict=True):
            if not abs(total) <= LARGEST:
                raise RewardError(f"{key}: {completion.prompt.where}: the weighted sum is {total}; use smaller rewards")
        return totals

    return score


def completion_metrics(completions: Sequence[Completion]) -> StepMetrics:
    """Return length and repetition of completions for the training log: common ways to exploit a reward."""
    count = len(completions)
    style = habits([completion.text for completion in completions])
    return {"answer_words": (style.mean_words * count, count), "repeated_share": (style.repeated_share * count, count)}


def in_full(name: str) -> tuple[Path, str]:
    """Return the absolute path of a reward's file or run, and the name of its function, empty for a run."""
    module, function = function_in(name)
    if function:
        return Path(module if module.endswith(".py") else f"{module.replace('.', '/')}.py").resolve(), function
    run = Path(name).resolve()
    return (run.parent if run.name == "model" else run), ""


def digests(names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each reward's file, or of a run's manifest; rewards without a file are left out."""
    paths = {name: in_full(name) for name in names}
    files = {name: path if function else path / "model" / MANIFEST for name, (path, function) in paths.items()}
    return {name: sha256_of_file(file) for name, file in files.items() if file.is_file()}


@cache
def _reward_model(name: str, key: str, digest: str) -> Scorer:
    """Return the scorer of a tuned reward model, loaded on first use; the digest separates cached versions."""
    if not Path(name).exists():
        if (offered := plugin("rewards", name)) is not None:
            return _checked(offered, name, key)
        fix = "name a run of objective: reward, or a Python function as module:function"
        raise RecipeError(f"{key}: no run {name!r} here; {fix}")
    kind = read_manifest(find_model(name)).objective
    if kind.produces != "score":
        raise RecipeError(f"{key}: {name} was tuned with {kind.kind}; name a run of objective: reward")

    @cache
    def model() -> LocalModel:
        from tunesmith.inference.saved_model import load

        return load(name, threads=None, offline=True)  # with the threads of this run

    return lambda completions: model().rewards([(one.prompt.prompt, one.text) for one in completions])


def _python_reward(name: str, key: str) -> Scorer:
    """Return the scorer of the function that `module:function` or `path/file.py:function` names."""
    location, attribute = function_in(name)
    try:
        module = _module(location)
    except (Exception, SystemExit) as error:  # the module is the user's and may raise anything
        text = " ".join(str(error).split()) or type(error).__name__
        fix = "fix it, or name a file as path/to/rules.py:score"
        raise RecipeError(f"{key}: {location} cannot be imported ({type(error).__name__}: {text}); {fix}") from error
    value = getattr(module, attribute, None)
    if not callable(value):
        names = sorted(word for word, item in vars(module).items() if callable(item) and not word.startswith("_"))
        raise RecipeError(f"{key}: {location} has no function {attribute!r}; it has {', '.join(names) or 'none'}")
    return _checked(value, name, key)


def _checked(function: Callable[[Completion], Any], name: str, key: str) -> Scorer:
    """Return the scorer of a function; raise RecipeError unless it takes one completion."""
    if inspect.iscoroutinefunction(function):
        raise RecipeError(f"{key}: {name} is async; write a plain function")
    with suppress(ValueError):  # some functions in C have no signature
        signature = inspect.signature(function)
        try:
            signature.bind(None)
        except TypeError:
            fix = "take one completion; what TRL passes as completion is `completion.text`"
            raise RecipeError(f"{key}: {name} takes {signature}; {fix}") from None
    return lambda completions: [
        _call(name, function, completion) for completion in track(completions, f"scoring by {name}", unit="completions")
    ]


def _module(location: str) -> ModuleType:
    """Import a module or file, again if the file has changed: notebooks edit rewards between runs.

    A file may import modules from its directory, also while it scores.
    """
    path = Path(location)
    if location.endswith(".py"):  # the same name in another working folder is another file
        location = str(path.resolve())
    modified, module = _IMPORTED.get(location, (0, None))
    if module is not None and modified == _modified(module):
        return module
    if not location.endswith(".py"):
        imported = importlib.import_module(location) if module is None else importlib.reload(module)
        _IMPORTED[location] = (_modified(imported), imported)
        return imported
    spec = importlib.util.spec_from_file_location(location, path)  # a unique name
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(f"no file {path}")
    imported = importlib.util.module_from_spec(spec)
    if (directory := str(path.resolve().parent)) not in sys.path:
        sys.path.append(directory)
    sys.modules[spec.name] = imported  # dataclasses look up their module there
    spec.loader.exec_module(imported)
    _IMPORTED[location] = (_modified(imported), imported)
    return imported


def _modified(module: ModuleType) -> int:
    """Return the modification time of a module's file in nanoseconds; 0 for a module without a file."""
    file = Path(str(module.__file__))
    return file.stat().st_mtime_ns if file.is_file() else 0


def _call(name: str, function: Callable[[Completion], Any], completion: Completion) -> float:
    """Score one completion. Raises RewardError with function, prompt and completion."""
    text = completion.text
    if len(text) > MAX_SHOWN_CHARS:
        text = f"{text[: MAX_SHOWN_CHARS - 3]}..."
    location = f"reward {name}: {completion.prompt.where}, answer {text!r}"
    try:
        value = function(completion)
    except (Exception, SystemExit) as error:  # the function is the user's and may raise anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        line = f"line {last.lineno} of {Path(last.filename).name}"
        raised = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RewardError(f"{location}: it raised {raised} ({line}); fix it and resume the run") from error
    try:
        number = float(value)
    except Exception:  # of any class of the user's
        number = math.nan
    if not math.isfinite(number):
        raise RewardError(f"{location}: expected a finite number, got {value!r}; fix it and resume the run")
    return number
