"""A model behind HTTP: reading requests, the token, the endpoints, what Prometheus is told.

It knows no Ray: `prismrec.jobs.serve` runs it in replicas, tests run it alone.
"""
