"""What a person looks at: pictures, an HTML page, the khartes project."""

from zarrmask.report.khartes import khartes_opens, write_khartes_project
from zarrmask.report.overview import write_overview
from zarrmask.report.page import write_report
from zarrmask.report.views import read_views

__all__ = [
    "khartes_opens",
    "read_views",
    "write_khartes_project",
    "write_overview",
    "write_report",
]
