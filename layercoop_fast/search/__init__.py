"""Which players go: one file a method, one call form (`search`), found by name through `base.get_method`."""
