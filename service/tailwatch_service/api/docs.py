"""The API's own documentation page: one table from the OpenAPI document, no script, nothing from elsewhere."""

from __future__ import annotations

from html import escape

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter()


@router.get("/docs", include_in_schema=False)
def get_docs(request: Request) -> HTMLResponse:
    """All calls of the API, with their parameters and answers."""
    schema = request.app.openapi()
    rows = []
    for path, calls in schema["paths"].items():
        for method, call in calls.items():
            parameters = ", ".join(escape(parameter["name"]) for parameter in call.get("parameters", ()))
            codes = ", ".join(map(escape, call["responses"]))
            rows.append(
                f"<tr><td>{method.upper()}</td><td><code>{escape(path)}</code></td>"
                f"<td>{escape(call.get('summary', ''))}"
                f"<br>{escape(call.get('description', ''))}</td><td>{parameters}</td><td>{codes}</td></tr>"
            )
    head = "<th>Method</th><th>Path</th><th>What it does</th><th>Parameters</th><th>Answers</th>"
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Tailwatch API</title>'
        '<link rel="stylesheet" href="/static/css/base.css"></head><body><main><h1>Tailwatch API</h1>'
        '<p>The machine-readable description is <a href="/openapi.json">/openapi.json</a> (OpenAPI 3.1).</p>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></main></body></html>"
    )
