"""What a person looks at: pictures, an HTML page, the khartes project."""

from zarrmask.report.khartes import write_khartes_project
from zarrmask.report.overview import write_overview
from zarrmask.report.page import write_report

__all__ = ["write_khartes_project", "write_overview", "write_report"]
