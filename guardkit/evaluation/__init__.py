"""Scoring guards on labelled texts: `guard eval`. Not imported by `import guardkit`.

specs.py, datasets.yaml    the named data sets: source, columns, labels, metric, licence; published figures
rows.py, sources.py        files and hubs in, labelled rows out
predictions.py             what a model said of a text, kept on disk
columns.py                 labels and verdicts of many rows, in a few bytes each
metrics.py, locations.py   figures of verdicts, and of where a stream was stopped
runner.py                  one model on one data set
report.py, page.py, charts.py    text, Markdown, JSON and HTML
"""
