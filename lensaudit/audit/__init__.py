"""The audit: evaluation, gates, detectability, realism, completeness, closure."""
