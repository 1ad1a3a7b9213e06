"""All that is checked before anything compiles: shapes, data, labels, the optimizer's state."""
