"""The pages of the documentation site that are made from code, configs and tables."""
