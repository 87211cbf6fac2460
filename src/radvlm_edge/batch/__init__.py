"""Archives: many films in, one Parquet file out; killed and run again it goes on where it was.

`films` (what is meant by the command line) → `job` (parts done and to do) → `answering` (films → rows) →
`rows` (rows → Parquet) on `processes` of this machine, or `on_ray` on several.
"""
