"""A model from a backbone and an attention: what fills which slot, and what can be counted or added on such a model."""
