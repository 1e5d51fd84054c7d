"""Teaching: recipes as data, the tower stage, the run."""
