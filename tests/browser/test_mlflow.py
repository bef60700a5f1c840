"""The report among the artifacts of a run, in MLflow's own pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from prismrec.analysis.report.collapse import collapse_chapter
from prismrec.analysis.report.page import Report, page
from prismrec.config.train import TrackingSection
from prismrec.tracking.run import MlflowTracker
from tests.helpers.mlflow_server import MlflowServer
from tests.unit.analysis.planted import planted
from tests.unit.tracking.conftest import empty_store, server

__all__ = ["empty_store", "server"]


@pytest.mark.slow
def test_the_report_opens_in_mlflow(browser: Browser, server: MlflowServer, tmp_path: Path) -> None:
    chapter = collapse_chapter([planted().subject], lambda *_: None)
    report = tmp_path / "report.html"
    report.write_text(page(Report("Looked at", ["planted"], [], [chapter])), encoding="utf-8")
    uri = server.uri
    tracker = MlflowTracker.start(TrackingSection(uri=uri, experiment="pages"), "seen")
    tracker.log_file(report, "analysis")
    assert tracker.close()
    opened, errors = browser.new_page(), []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    place = f"/#/experiments/1/runs/{tracker.run_id}/artifacts/analysis/report.html"
    opened.goto(uri + place)
    frame = opened.frame_locator("iframe")
    frame.locator("nav a[href='#collapse']").click(timeout=60_000)
    frame.locator("#chapter-collapse .plot .main-svg").first.wait_for(timeout=60_000)
    assert frame.locator("h1").inner_text() == "Looked at"
    frame.locator("#theme").click()  # a sandboxed page has no storage
    assert errors == []
    opened.close()
