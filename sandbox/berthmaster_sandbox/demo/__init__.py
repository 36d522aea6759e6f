"""The demo: a real cluster, the real configuration, and stories that end as they are written."""
