"""The report: a judgement as one page that needs no server, for the people who say yes or no."""

from validation.report.page import render_report

__all__ = ["render_report"]
