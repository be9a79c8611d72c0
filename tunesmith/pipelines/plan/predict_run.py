"""The prediction of a run that is about to start: memory of its technique, and time of the whole run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tunesmith.data.files import read_page, write_whole
from tunesmith.pipelines.plan.forecast import RunForecast, forecast_run
from tunesmith.pipelines.plan.profile import named, profile_run
from tunesmith.pipelines.plan.report import PREDICTION, CostPrediction, memory, read_prediction
from tunesmith.report.formatting import count, forecast_text
from tunesmith.training.prepare import TrainingContext

FORECAST = "forecast.json"


def predict_run(
    prepared: TrainingContext, out: Path, *, measured: Mapping[str, float]
) -> tuple[CostPrediction, RunForecast] | None:
    """Predict memory and time of a run; both are kept in the run folder, so that a resumed run has its first ones.

    Args:
        prepared: the run.
        out: the run folder.
        measured: seconds of phases that are over.

    Returns:
        Cost of the technique, and the forecast of the whole run; None for `rl`: the length of its completions is
        unknown.
    """
    if prepared.recipe.objective.samples_completions:
        return None
    cost, forecast = read_prediction(out), read_forecast(out)
    if cost is None or forecast is None:
        cost, forecast = predicted(prepared, measured=measured)
        write_whole(out / PREDICTION, cost.model_dump_json(indent=1))
        write_whole(out / FORECAST, forecast.model_dump_json(indent=1))
    return cost, forecast


def predicted(
    prepared: TrainingContext, *, measured: Mapping[str, float] | None = None
) -> tuple[CostPrediction, RunForecast]:
    """Return the cost of the recipe's technique and the forecast of the whole run; nothing is trained."""
    technique, profile = prepared.recipe.technique, profile_run(prepared, own=True)
    forecast = forecast_run(prepared, profile, measured=measured)
    return forecast.prediction(named(technique), profile.cost(technique)), forecast


def read_forecast(run: Path) -> RunForecast | None:
    """Return the recorded forecast of a run, or None if it has none."""
    path = run / FORECAST
    return read_page(path, RunForecast) if path.exists() else None


def prediction_line(cost: CostPrediction, forecast: RunForecast) -> str:
    """Format memory and time of a run as one line."""
    return (
        f"plan: {cost.technique}: {count(cost.trainable)} trainable parameters, peak memory {memory(cost.memory)}; "
        f"forecast of the whole run: {forecast_text(forecast.seconds, forecast.low, forecast.high)}, "
        f"{forecast.basis}"
    )
