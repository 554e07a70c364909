"""From findings to figures and pages."""
