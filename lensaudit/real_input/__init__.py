"""Real excerpts: catalogues and survey tables (`tables`), stamps, scores and injections (`stamps`)."""
