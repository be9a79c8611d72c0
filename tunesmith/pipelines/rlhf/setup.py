"""A loop before it walks: its prompts and its judges, what is done of it, and all that it can be refused for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.config import PEOPLE, VOTES, Compare, Loop, Recipe, check_pair, check_replay, save_recipe
from tunesmith.config.style_rules import read_style_rules
from tunesmith.data.examples.prompts import RLPrompt, Scorer
from tunesmith.data.examples.types import Example
from tunesmith.data.files import read_page
from tunesmith.errors import RecipeError
from tunesmith.events import Note
from tunesmith.objectives import Preference, Rl
from tunesmith.pipelines.compare.selection import answers_prompts
from tunesmith.pipelines.rlhf.report import LoopPlan, LoopReport, RoundAhead
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.prepare import read_data
from tunesmith.training.rewards import digests, in_full, scorer
from tunesmith.training.run_folder import RunFolder, open_run
from tunesmith.training.trackers import check_trackers

JSON, REPLIES = "rlhf.json", "replies.json"
POLICY, REWARD = "policy", "reward"
FEWEST_HELD_OUT = 2
# What a loop's folder holds may be people's work.
KEEP = "give another --out; `tunesmith votes export` and `votes import` bring the votes of its rounds along"


@dataclass(frozen=True, slots=True)
class LoopState:
    """A loop under way: its folder, its prompts, and who judges at its end."""

    recipe: Recipe
    run: RunFolder
    callbacks: Callbacks
    offline: bool
    prompts: Mapping[str, list[RLPrompt]]  # of train, validation and test
    longest: int
    final: Scorer

    @property
    def settings(self) -> Loop:
        """The recipe's section about it."""
        return self.recipe.loop

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.run.path

    @property
    def test(self) -> list[RLPrompt]:
        """The held-out prompts that the end and the start answer."""
        return self.prompts["test"][: self.settings.held_out]

    def round(self, number: int) -> Path:
        """The folder of a round."""
        return self.folder / f"round-{number}"

    def votes(self, number: int) -> Path:
        """The store of a round."""
        return self.round(number) / "votes.db"

    def left(self, number: int) -> bool:
        """Whether a round is over: its policy has answered, or there was nothing to learn and the next one began."""
        return (self.round(number) / REPLIES).exists() or self.round(number + 1).exists()

    def report(self) -> LoopReport | None:
        """The report of a loop that is done, by this last judge."""
        kept = self.folder / JSON
        if not kept.exists():
            return None
        known = read_page(kept, LoopReport)
        same = (known.final_judge, len(known.rounds)) == (self.settings.final_judge, self.settings.rounds)
        return known if same else None


def start_loop(loop: LoopState) -> None:
    """Write down what the loop is, or goes on with. Raises CheckpointError where it is another's folder by now."""
    recipe = loop.recipe
    open_run(recipe, loop.folder, fix=KEEP)  # another process may have begun here meanwhile
    judges = (recipe.loop.judge, recipe.loop.final_judge)
    kept, changed = loop.run.since("judges", digests(judges))
    for name in changed:
        loop.callbacks.on_event(
            Note(f"{name}: the judge's file has changed since this loop began; what it judged before stays")
        )
    loop.run.begin({"judges": kept})
    save_recipe(recipe, loop.folder / "recipe.yaml")


def plan_loop(recipe: Recipe, *, out: Path | None = None, offline: bool = False) -> LoopPlan:
    """What the loop would do and has done; nothing is written. Raises what `rlhf` raises first."""
    loop = read_loop(recipe, out, Callbacks(), offline=offline)

    def step(number: int) -> RoundAhead:
        begun = loop.round(number).exists()
        return RoundAhead(number=number, state="done" if loop.left(number) else "begun" if begun else "ahead")

    return LoopPlan(
        train=len(loop.prompts["train"]),
        held_out=len(loop.test),
        rounds=[step(number) for number in range(1, loop.settings.rounds + 1)],
        done=loop.report() is not None,
        folder=str(loop.folder),
    )


def read_loop(recipe: Recipe, out: Path | None, callbacks: Callbacks, *, offline: bool = False) -> LoopState:
    """The loop's prompts and place; all that can be refused is refused here, and nothing is written."""
    objective, settings = recipe.objective, recipe.loop
    if not isinstance(objective, Preference | Rl):
        cure = "use objective: preference, or objective: {kind: rl, reward: votes}"
        raise RecipeError(f"objective {objective.kind}: learns nothing from judgements of answers; {cure}")
    if isinstance(objective, Rl) and not objective.rewards.get(VOTES):
        raise RecipeError(
            "objective.reward: a loop learns its reward from the votes; write reward: votes, or weigh it in"
        )
    place = out or Path("loops") / open_run(recipe, None).path.name
    _check_last_judge(recipe, place)
    _check_runs(recipe, offline=offline)
    final = scorer(settings.final_judge, key="loop.final_judge")
    if settings.judge != PEOPLE:
        if settings.judge.lower() == PEOPLE:
            raise RecipeError(f"loop.judge: {settings.judge!r} is nobody; people on the page are written {PEOPLE}")
        scorer(settings.judge, key="loop.judge")
    run = open_run(recipe, place, fix=KEEP)
    asks = {"prompt", "instruction", "max_new_tokens"}  # an answer in a row of preference is one that was judged
    reader = Rl(**objective.model_dump(include=asks | {"answer", "messages"} if isinstance(objective, Rl) else asks))
    split = read_data(recipe.model_copy(update={"objective": reader}), offline=offline).split
    prompts = {"train": _asked(split.train), "validation": _asked(split.validation), "test": _asked(split.test)}
    if tools := next((one.where for part in prompts.values() for one in part if one.messages[0].tools), ""):
        cure = "tune on calls with objective: rl and a reward, or leave the column of tools out"
        raise RecipeError(f"{tools}: tools may be called here, which votes do not keep; {cure}")
    _check_enough(recipe, prompts)
    longest = reader.bind(split.train, "decoder").max_new_tokens
    return LoopState(recipe, run, callbacks, offline, prompts, longest, final)


def _asked(part: list[Example]) -> list[RLPrompt]:
    return [example for example in part if isinstance(example, RLPrompt)]


def _check_enough(recipe: Recipe, prompts: Mapping[str, list[RLPrompt]]) -> None:
    """Prompts for every round, and two for the end: of one there is no interval of the win rate. Raises RecipeError."""
    data, wanted = recipe.data, recipe.loop.prompts * recipe.loop.rounds
    there, held = len(prompts["train"]), len(prompts["test"])
    if there < wanted:
        cure = "give more rows, or lower loop.rounds or loop.prompts"
        raise RecipeError(f"{data.train}: {there} prompts to train on and {held} held out for {wanted}; {cure}")
    if held < FEWEST_HELD_OUT:
        place = data.test if isinstance(data.test, str) else data.train
        cure = "give more rows, or a larger part of them as data.test"
        raise RecipeError(f"{place}: {held} prompts held out, and the end needs {FEWEST_HELD_OUT} or more; {cure}")


def _check_runs(recipe: Recipe, *, offline: bool) -> None:
    """Nothing for a recipe whose runs can begin: they do so only once people have judged. Raises RecipeError."""
    objective = recipe.objective
    read_style_rules(recipe, offline=offline)
    check_trackers(recipe.track)
    if isinstance(objective, Rl) and (others := [name for name in objective.rewards if name != VOTES]):
        scorer(dict.fromkeys(others, 1.0), key="objective.reward")
    own = recipe.model_copy(update={"compare": Compare()})  # nothing else is asked here
    family = "decoder" if answers_prompts(own, offline=offline) else "encoder"
    check_pair(recipe, family)
    check_replay(recipe, family)


def _check_last_judge(recipe: Recipe, folder: Path) -> None:
    """Nothing for a last judge that trains nothing in the loop. Raises RecipeError."""
    final, objective = recipe.loop.final_judge, recipe.objective
    if not final:
        return  # `scorer` says what to write
    cure = "and so trains the policy; name another"
    if in_full(final) == in_full(recipe.loop.judge):
        raise RecipeError(f"loop.final_judge: {final} judges the rounds too, {cure}")
    if isinstance(objective, Rl) and in_full(final) in map(in_full, objective.rewards):
        raise RecipeError(f"loop.final_judge: {final} is part of objective.reward, {cure}")
    if ":" not in final and Path(final).resolve().is_relative_to(folder.resolve()):
        raise RecipeError(f"loop.final_judge: {final} is learned in this loop, {cure}")
