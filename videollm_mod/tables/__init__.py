"""The paper's tables in miniature: cells.py what is compared, fill.py trains and measures, page.py shows."""
