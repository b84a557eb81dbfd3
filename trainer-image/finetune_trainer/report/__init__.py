"""report.html of the artifact: one page that shows what training did, without any other file."""
