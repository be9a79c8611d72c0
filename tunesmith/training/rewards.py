"""What scores answers: a tuned reward model, a Python function that the user names, or a weighted sum of several."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from tunesmith.config import Recipe
from tunesmith.data.examples.prompts import Completion, Scorer
from tunesmith.data.files import sha256_of_file
from tunesmith.errors import RecipeError, RewardError
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import find_model, load, read_manifest
from tunesmith.metrics.style import habits
from tunesmith.models.batch import StepMetrics
from tunesmith.models.loading.checkpoint import MANIFEST
from tunesmith.objectives import Rl

MAX_SHOWN_CHARS = 60
LARGEST = 1e30  # training counts in single precision
_IMPORTED: dict[str, tuple[int, ModuleType]] = {}  # place -> when its file was written, and what it then was


def check_reward(recipe: Recipe) -> None:
    """Raise RecipeError where an `rl` recipe names no reward that can be found."""
    if recipe.objective.samples_completions:
        scorer(recipe.objective.rewards, key="objective.reward")


def scorer_of(objective: Rl) -> Scorer:
    """What scores the answers of a run, as its recipe names it. Raises RecipeError as `scorer` does."""
    return scorer(objective.reward, key="objective.reward")


def scorer(reward: str | Mapping[str, float], *, key: str) -> Scorer:
    """What a key of a recipe names to score answers. Raises RecipeError for what cannot be found.

    A Python function gets one `Completion` and gives a number; naming it runs its module. The scorer raises RewardError
    where a reward fails or gives no number.
    """
    if not reward:
        last = key.rpartition(".")[2]
        raise RecipeError(
            f"{key} is missing: name what scores an answer, a run of objective: reward or a Python function, "
            f"as {last}: runs/reward or {last}: rules:score"
        )
    named = {reward: 1.0} if isinstance(reward, str) else reward
    _check_weights(named, key)
    parts = [(_source(name, key), weight) for name, weight in named.items()]

    def score(completions: Sequence[Completion]) -> list[float]:
        each = [[weight * value for value in source(completions)] for source, weight in parts]
        paid = [sum(values) for values in zip(*each, strict=True)]
        for attempt, value in zip(completions, paid, strict=True):
            if not abs(value) <= LARGEST:
                raise RewardError(f"{key}: {attempt.prompt.where}: the weighted sum is {value}; give smaller rewards")
        return paid

    return score


def completion_metrics(completions: Sequence[Completion]) -> StepMetrics:
    """Length and repetition of some answers, for the journal: what a reward is often cheated by."""
    found, count = habits([attempt.text for attempt in completions]), len(completions)
    return {"answer_words": (found.mean_words * count, count), "repeated_share": (found.repeated_share * count, count)}


def in_full(name: str) -> tuple[Path, str]:
    """The file or run that a name means and the function in it, the same however they are written."""
    place, colon, function = name.rpartition(":")
    if colon:
        return Path(place if place.endswith(".py") else f"{place.replace('.', '/')}.py").resolve(), function
    run = Path(name).resolve()
    return (run.parent if run.name == "model" else run), ""


def digests(names: Iterable[str]) -> dict[str, str]:
    """Function or run -> digest of its file, or of all its files, of those that lie where their name says."""
    places = {name: in_full(name) for name in names}
    files = {name: place if function else place / "model" / MANIFEST for name, (place, function) in places.items()}
    return {name: sha256_of_file(file) for name, file in files.items() if file.is_file()}


def _check_weights(named: Mapping[str, float], key: str) -> None:
    """Nothing for weights that each count, of things that are named once. Raises RecipeError."""
    if not any(named.values()):
        raise RecipeError(f"{key}: all weights are 0, so every answer is as good as any; give one that counts")
    met = dict[tuple[Path, str], str]()
    for name in named:
        if (before := met.setdefault(in_full(name), name)) != name:
            raise RecipeError(f"{key}: {before} and {name} are the same; name it once, with the sum of the weights")


def _source(name: str, key: str) -> Scorer:
    """The scorer of one name."""
    if ":" not in name:
        return _run(name, key, digests([name]).get(name, ""))
    function = _function(name, key)

    def score(completions: Sequence[Completion]) -> list[float]:
        return [_checked(name, function, attempt) for attempt in completions]

    return score


@cache
def _run(name: str, key: str, digest: str) -> Scorer:
    """A tuned reward model of this digest, read when it is first asked. Raises RecipeError for what is none."""
    if not Path(name).exists():
        cure = "name a run of objective: reward, or a Python function as module:function"
        raise RecipeError(f"{key}: {name!r} is no run here; {cure}")
    about = read_manifest(find_model(name))
    if about.objective.produces != "score":
        raise RecipeError(f"{key}: {name} was tuned to {about.objective.kind}; name a run of objective: reward")

    @cache
    def judge() -> LocalModel:
        return load(name, threads=None, offline=True)  # a run goes on as it began

    def score(completions: Sequence[Completion]) -> list[float]:
        return judge().rewards([(attempt.prompt.prompt, attempt.text) for attempt in completions])

    return score


def _function(name: str, key: str) -> Callable[[Completion], Any]:
    """The function that `module:function` or `path/file.py:function` names. Raises RecipeError."""
    place, _, wanted = name.rpartition(":")
    try:
        module = _module(place)
    except (Exception, SystemExit) as error:  # a module is a program of the user's: what it raises is its finding
        said = " ".join(str(error).split()) or type(error).__name__
        cure = "mend it, or name a file as path/to/rules.py:score"
        raise RecipeError(f"{key}: {place} cannot be imported ({type(error).__name__}: {said}); {cure}") from error
    found = getattr(module, wanted, None)
    if not callable(found):
        names = sorted(word for word, value in vars(module).items() if callable(value) and not word.startswith("_"))
        raise RecipeError(f"{key}: {place} has no function {wanted!r}; it has {', '.join(names) or 'none'}")
    function: Callable[[Completion], Any] = found
    _check_takes_one(name, function, key)
    return function


def _check_takes_one(name: str, function: Callable[[Completion], Any], key: str) -> None:
    """Nothing for a plain function that can be called with one attempt. Raises RecipeError."""
    if inspect.iscoroutinefunction(function):
        raise RecipeError(f"{key}: {name} is async, and answers are scored one after the other; write a plain function")
    try:
        taken = inspect.signature(function)
    except ValueError:  # some of those in C do not say
        return
    try:
        taken.bind(None)
    except TypeError:
        cure = "it must take one attempt; TRL's completion is `attempt.text`"
        raise RecipeError(f"{key}: {name} takes {taken}; {cure}") from None


def _module(place: str) -> ModuleType:
    """The module as its file is by now: who mends a reward in a notebook is to get the mended one."""
    written, module = _IMPORTED.get(place, (0, None))
    if module is not None and written == _written(module):
        return module
    if place.endswith(".py"):
        found = _from_file(Path(place))
    else:
        found = importlib.import_module(place) if module is None else importlib.reload(module)
    _IMPORTED[place] = (_written(found), found)
    return found


def _written(module: ModuleType) -> int:
    """When the file of a module was written; 0 for one without."""
    file = Path(str(module.__file__))
    return file.stat().st_mtime_ns if file.is_file() else 0


def _from_file(path: Path) -> ModuleType:
    """The module in a file; what lies beside it can be imported by it, also when it is asked."""
    spec = importlib.util.spec_from_file_location(str(path.resolve()), path)  # a name that no other module has
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    if (beside := str(path.resolve().parent)) not in sys.path:
        sys.path.append(beside)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def _line(error: BaseException) -> str:
    """Where a function of the user's went wrong, in words."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"(line {last.lineno} of {Path(last.filename).name})"


def _checked(name: str, function: Callable[[Completion], Any], completion: Completion) -> float:
    """The number for one attempt. Raises RewardError, which names function, prompt and answer."""
    text = (
        completion.text if len(completion.text) <= MAX_SHOWN_CHARS else f"{completion.text[: MAX_SHOWN_CHARS - 3]}..."
    )
    place = f"reward {name}: {completion.prompt.where}, answer {text!r}"
    try:
        value = function(completion)
    except (Exception, SystemExit) as error:  # the function is the user's: whatever it raises is told, not handled
        said = " ".join(str(error).split())
        raise RewardError(
            f"{place}: it raised {type(error).__name__}: {said} {_line(error)}; mend it, the run goes on from here"
        ) from error
    try:
        number = float(value)
    except Exception:  # of a value of the user's own kind
        number = math.nan
    if not math.isfinite(number):
        raise RewardError(f"{place}: it gave {value!r}; give a finite number, the run goes on from here")
    return number
