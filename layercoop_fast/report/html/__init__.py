"""Reports as one HTML file each: charts as inline SVG, no script, nothing loaded from anywhere.

A section is a function from a record (`layercoop.json`, or that of a comparison) to a piece of HTML, or to None where
the record does not hold what it shows.
"""
