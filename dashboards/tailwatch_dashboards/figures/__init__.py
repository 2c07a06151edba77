"""Figures: tables in, Plotly figures out. Pure functions, one file per figure; `axes` holds what they
share."""
