"""Is the teacher worth it? The student against its teacher, its base and itself tuned without the teacher's rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.evaluation.evaluators import Evaluator
from tunesmith.evaluation.teacher import Teaching
from tunesmith.report.schema import Distillation, DistilledModel, Training

# Names of models in the report.
TEACHER, GOLD, STUDENT = "teacher", "gold rows alone", "student"


def distillation(
    teaching: Teaching,
    evaluator: Evaluator[Any],
    predictions: Mapping[str, Any],
    *,
    training: Training,
    model_bytes: int | None,
) -> Distillation:
    """Compare a student with its teacher and with itself tuned on gold rows alone.

    Args:
        teaching: what the teacher has answered.
        evaluator: of the test rows.
        predictions: of the base, TEACHER, GOLD and STUDENT.
        training: of the student.
        model_bytes: weights of the student.
    """
    models = []
    for name, found in predictions.items():
        score = evaluator.score(found, name=name)[0]
        parameters, size = teaching.teacher.size if name == TEACHER else (training.parameters, model_bytes)
        speed = score.n / max(found.seconds, 1e-9)
        shown = {"name": name, "parameters": parameters, "bytes": size, "rows_per_second": speed}
        models.append(DistilledModel(**shown, score=score.score, ci95=score.ci95))
    student = predictions[STUDENT]
    return Distillation(
        teacher=teaching.teacher.label,
        **{key: getattr(teaching, key) for key in ("asked", "kept", "accuracy", "threshold", "kept_accuracy")},
        models=models,
        gain=evaluator.compare(predictions[GOLD], student, name=STUDENT)[0],
        against_teacher=evaluator.compare(predictions[TEACHER], student, name=STUDENT)[0],
    )
