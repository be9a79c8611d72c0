"""The start of a loop: its prompts, its judges, its state, and every check before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.config import PEOPLE, VOTES, Compare, Loop, Recipe, check_pair, check_replay, save_recipe
from tunesmith.config.style_rules import read_style_rules
from tunesmith.data.examples.prompts import RLPrompt, Scorer
from tunesmith.data.files import function_in, read_page
from tunesmith.errors import RecipeError
from tunesmith.events import Note
from tunesmith.objectives import Rl
from tunesmith.pipelines.compare.selection import answers_prompts
from tunesmith.pipelines.rlhf.report import LoopPlan, LoopReport, RoundAhead
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.read import read_data
from tunesmith.training.rewards import digests, in_full, scorer
from tunesmith.training.run_folder import RunFolder, open_run
from tunesmith.training.trackers import check_trackers

JSON = "rlhf.json"
REPLIES = "replies.json"
POLICY = "policy"
REWARD = "reward"
FEWEST_HELD_OUT = 2
# The folder of a loop contains the work of raters, so no message suggests to delete it.
KEEP = "give another --out; `tunesmith votes export` and `votes import` copy the votes of its rounds"


@dataclass(frozen=True, slots=True)
class LoopState:
    """A loop that passed all checks."""

    recipe: Recipe
    run: RunFolder
    callbacks: Callbacks
    offline: bool
    prompts: Mapping[str, list[RLPrompt]]  # by split: train, validation, test
    longest: int  # longest completion, in tokens
    final: Scorer  # the final judge

    @property
    def settings(self) -> Loop:
        """Return the section `loop` of the recipe."""
        return self.recipe.loop

    @property
    def folder(self) -> Path:
        """Return the folder of the loop."""
        return self.run.path

    @property
    def test(self) -> list[RLPrompt]:
        """Return the held-out prompts, on which the base model and each policy are compared."""
        return self.prompts["test"][: self.settings.held_out]

    def round(self, number: int) -> Path:
        """Return the folder of a round, counted from 1."""
        return self.folder / f"round-{number}"

    def votes(self, number: int) -> Path:
        """Return the vote store of a round."""
        return self.round(number) / "votes.db"

    def left(self, number: int) -> bool:
        """Return whether a round is finished: its policy has answered, or the next round has started without one."""
        return (self.round(number) / REPLIES).exists() or self.round(number + 1).exists()

    def report(self) -> LoopReport | None:
        """Return the report if the loop is finished with this final judge and number of rounds."""
        path = self.folder / JSON
        if not path.exists():
            return None
        report = read_page(path, LoopReport)
        same = (report.final_judge, len(report.rounds)) == (self.settings.final_judge, self.settings.rounds)
        return report if same else None


def start_loop(loop: LoopState) -> None:
    """Record what the loop is. Raise CheckpointError if the folder belongs to another loop by now."""
    recipe = loop.recipe
    open_run(recipe, loop.folder, fix=KEEP)  # another process may have started here
    judges = (recipe.loop.judge, recipe.loop.final_judge)
    recorded, changed = loop.run.since("judges", digests(judges))
    for name in changed:
        loop.callbacks.on_event(
            Note(f"{name}: the file of the judge has changed since this loop started; earlier votes are kept")
        )
    loop.run.begin({"judges": recorded})
    save_recipe(recipe, loop.folder / "recipe.yaml")


def plan_loop(recipe: Recipe, *, out: Path | None = None, offline: bool = False) -> LoopPlan:
    """Return the state of a loop without writing anything.

    Args:
        recipe: the recipe.
        out: folder of the loop; by default as `rlhf` chooses it.
        offline: do not access the network.

    Raises:
        RecipeError: as `rlhf` does before it starts.
    """
    loop = read_loop(recipe, out, Callbacks(), offline=offline)

    def state(number: int) -> RoundAhead:
        started = loop.round(number).exists()
        return RoundAhead(number=number, state="done" if loop.left(number) else "begun" if started else "ahead")

    return LoopPlan(
        train=len(loop.prompts["train"]),
        held_out=len(loop.test),
        rounds=[state(number) for number in range(1, loop.settings.rounds + 1)],
        done=loop.report() is not None,
        folder=str(loop.folder),
    )


def read_loop(recipe: Recipe, out: Path | None, callbacks: Callbacks, *, offline: bool = False) -> LoopState:
    """Read the prompts of a loop and check everything that can be checked; nothing is written.

    Raises RecipeError if its objective, a judge, the rows or the runs cannot work.
    """
    objective, settings = recipe.objective, recipe.loop
    if not objective.learns_from_votes:
        raise RecipeError(
            f"objective {objective.kind}: does not learn from votes; use objective: preference, or "
            "objective: {kind: rl, reward: votes}"
        )
    if objective.samples_completions and not objective.rewards.get(VOTES):
        raise RecipeError(
            "objective.reward: expected a reward that is learned from the votes; write reward: votes, or give votes a "
            "weight"
        )
    folder = out or Path("loops") / open_run(recipe, None).path.name
    _check_final_judge(recipe, folder)
    _check_runs(recipe, offline=offline)
    final = scorer(settings.final_judge, key="loop.final_judge")
    if settings.judge != PEOPLE:
        if settings.judge.lower() == PEOPLE:
            raise RecipeError(f"loop.judge: unknown judge {settings.judge!r}; write {PEOPLE} for human raters")
        scorer(settings.judge, key="loop.judge")
    run = open_run(recipe, folder, fix=KEEP)
    columns = {"prompt", "instruction", "max_new_tokens"}
    if objective.samples_completions:  # an answer in a preference row is a completion that was rated
        columns |= {"answer", "messages"}
    reader = Rl(**objective.model_dump(include=columns))
    split = read_data(recipe.model_copy(update={"objective": reader}), offline=offline).split
    prompts = {
        name: [example for example in part if isinstance(example, RLPrompt)]
        for name, part in (("train", split.train), ("validation", split.validation), ("test", split.test))
    }
    _check_prompts(recipe, prompts)
    longest = reader.bind(split.train, "decoder").max_new_tokens
    return LoopState(recipe, run, callbacks, offline, prompts, longest, final)


def _check_prompts(recipe: Recipe, prompts: Mapping[str, list[RLPrompt]]) -> None:
    """Raise RecipeError for prompts with tools, too few for all rounds, or fewer than two for the final comparison."""
    tools = (prompt.where for part in prompts.values() for prompt in part if prompt.messages[0].tools)
    if location := next(tools, ""):
        raise RecipeError(
            f"{location}: this prompt has tools, which votes do not record; tune on tool calls with objective: rl and "
            "a reward, or remove the column of tools"
        )
    data, needed = recipe.data, recipe.loop.prompts * recipe.loop.rounds
    available, held_out = len(prompts["train"]), len(prompts["test"])
    if available < needed:
        raise RecipeError(
            f"{data.train}: expected {needed} training prompts, got {available} ({held_out} more are held out); "
            "give more rows, or lower loop.rounds or loop.prompts"
        )
    if held_out < FEWEST_HELD_OUT:  # one prompt gives no interval of the win rate
        file = data.test if isinstance(data.test, str) else data.train
        raise RecipeError(
            f"{file}: expected at least {FEWEST_HELD_OUT} held-out prompts, got {held_out}; give more rows, or raise "
            "data.test"
        )


def _check_runs(recipe: Recipe, *, offline: bool) -> None:
    """Raise RecipeError for runs that cannot start, before raters spend time on votes."""
    read_style_rules(recipe, offline=offline)
    check_trackers(recipe.track)
    if others := [name for name in recipe.objective.rewards if name != VOTES]:
        scorer(dict.fromkeys(others, 1.0), key="objective.reward")
    own = recipe.model_copy(update={"compare": Compare()})  # without the model that `compare` prompts
    family = "decoder" if answers_prompts(own, offline=offline) else "encoder"
    check_pair(recipe, family)
    check_replay(recipe, family)


def _check_final_judge(recipe: Recipe, folder: Path) -> None:
    """Raise RecipeError for a final judge that also trains the policy; `scorer` reports a missing one."""
    final = recipe.loop.final_judge
    if not final:
        return
    fix = "and so trains the policy; name another"
    if in_full(final) == in_full(recipe.loop.judge):
        raise RecipeError(f"loop.final_judge: {final} judges the rounds too, {fix}")
    if in_full(final) in map(in_full, recipe.objective.rewards):
        raise RecipeError(f"loop.final_judge: {final} is part of objective.reward, {fix}")
    if not function_in(final)[1] and Path(final).resolve().is_relative_to(folder.resolve()):
        raise RecipeError(f"loop.final_judge: {final} is learned in this loop, {fix}")
