"""Great Expectations' own kind of rule for the two bounds that gates rest on.

Importing this module imports Great Expectations, which takes seconds; `validation.expectations` does so when needed.
"""

from typing import Any, ClassVar

import pandas as pd
from great_expectations.core.metric_domain_types import MetricDomainTypes
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import BatchExpectation, MulticolumnMapExpectation
from great_expectations.expectations.metrics.map_metric_provider import MulticolumnMapMetricProvider
from great_expectations.expectations.metrics.map_metric_provider.multicolumn_condition_partial import (
    multicolumn_condition_partial,
)
from great_expectations.expectations.metrics.metric_provider import metric_value
from great_expectations.expectations.metrics.table_metric_provider import TableMetricProvider
from great_expectations.render import LegacyRendererType, RenderedStringTemplateContent
from great_expectations.render.renderer.renderer import renderer

from validation.measures import bound_differences, bound_scores, paired_differences, score_differences
from validation.statistics import Sampling, upper_bound


def _sentence(template: str, configuration: Any) -> list[RenderedStringTemplateContent]:
    """Returns what Data Docs print for a rule."""
    content = {"template": template, "params": dict(configuration.kwargs), "styling": {}}
    return [RenderedStringTemplateContent(content_block_type="string_template", string_template=content)]


class MulticolumnUpperBoundAtMost(MulticolumnMapMetricProvider):
    """Row by row: is the upper bound of hits among pictures, for that way of sampling, at most the limit?"""

    condition_metric_name = "multicolumn_values.residual_upper_bound_at_most"
    condition_domain_keys = ("batch_id", "table", "column_list", "row_condition", "condition_parser", "ignore_row_if")
    condition_value_keys = ("limit", "confidence", "sampling")

    @multicolumn_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column_list: pd.DataFrame, **kwargs: Any) -> pd.Series:  # noqa: N805
        def is_shown(row: pd.Series) -> bool:
            bound = upper_bound(*row.astype(int), confidence=kwargs["confidence"], sampling=kwargs["sampling"])
            return bound <= kwargs["limit"]

        return column_list.apply(is_shown, axis=1).astype(bool)


class ExpectResidualUpperBoundToBeAtMost(MulticolumnMapExpectation):
    """Expect the one-sided upper bound of a rate, from hits and pictures, to be at most a limit in every row."""

    limit: float
    confidence: float
    sampling: Sampling

    map_metric: ClassVar[str | None] = "multicolumn_values.residual_upper_bound_at_most"
    success_keys: ClassVar[tuple[str, ...]] = ("mostly", "limit", "confidence", "sampling")
    args_keys: ClassVar[tuple[str, ...]] = ("column_list", "limit", "confidence", "sampling")

    class Config(MulticolumnMapExpectation.Config):
        """What Data Docs call it."""

        title = "Expect residual upper bound to be at most"

    @classmethod
    @renderer(renderer_type=LegacyRendererType.PRESCRIPTIVE)
    def _prescriptive_renderer(cls, configuration: Any = None, **_: Any) -> list[RenderedStringTemplateContent]:
        return _sentence(
            "In every row the upper bound at confidence $confidence, with $sampling sampling, must be at most $limit.",
            configuration,
        )


class TablePairedLoss(TableMetricProvider):
    """Over a table of measures: the bounds of a role's mean paired difference, of hits or scores, by concept."""

    metric_name = "table.paired_difference_bounds"
    value_keys = ("role", "confidence", "of_scores")

    @metric_value(engine=PandasExecutionEngine)
    def _pandas(
        cls,  # noqa: N805
        execution_engine: PandasExecutionEngine,
        metric_domain_kwargs: dict[str, Any],
        metric_value_kwargs: dict[str, Any],
        metrics: dict[str, Any],  # noqa: ARG002
        runtime_configuration: dict[str, Any],  # noqa: ARG002
    ) -> dict[str, float]:
        table, _, _ = execution_engine.get_compute_domain(
            domain_kwargs=metric_domain_kwargs, domain_type=MetricDomainTypes.TABLE
        )
        own, confidence = table[table["role"] == metric_value_kwargs["role"]], metric_value_kwargs["confidence"]
        if metric_value_kwargs["of_scores"]:
            bounds = bound_scores(score_differences(own), confidence=confidence)
        else:
            bounds = bound_differences(paired_differences(own), confidence=confidence)
        return {"mean": bounds.mean, "lower": bounds.lower, "upper": bounds.upper, "pairs": bounds.pairs}


class ExpectPairedLossWithinMargin(BatchExpectation):
    """Expect the lower bound of the mean paired difference, candidate minus base, to be at least minus the margin."""

    role: str
    margin: float
    confidence: float
    pairs: int
    """Pairs that were planned; fewer never pass."""
    of_scores: bool = False
    """Image-text scores rather than hits."""

    metric_dependencies: ClassVar[tuple[str, ...]] = ("table.paired_difference_bounds",)
    success_keys: ClassVar[tuple[str, ...]] = ("role", "margin", "confidence", "pairs", "of_scores")
    args_keys: ClassVar[tuple[str, ...]] = ("role", "margin", "confidence", "pairs", "of_scores")

    class Config(BatchExpectation.Config):
        """What Data Docs call it."""

        title = "Expect paired loss to be within a margin"

    @classmethod
    @renderer(renderer_type=LegacyRendererType.PRESCRIPTIVE)
    def _prescriptive_renderer(cls, configuration: Any = None, **_: Any) -> list[RenderedStringTemplateContent]:
        return _sentence(
            f"{'The image-text score' if configuration.kwargs.get('of_scores') else 'Accuracy'} on $role concepts must "
            "be shown to fall by at most $margin at confidence $confidence.",
            configuration,
        )

    def _validate(
        self,
        metrics: dict[str, Any],
        runtime_configuration: dict[str, Any] | None = None,  # noqa: ARG002
        execution_engine: Any = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        bounds = metrics["table.paired_difference_bounds"]
        is_shown = bounds["pairs"] >= max(self.pairs, 1) and bounds["lower"] >= -self.margin
        return {"success": bool(is_shown), "result": {"observed_value": bounds["lower"], "details": bounds}}
