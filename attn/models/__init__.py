"""Models made of a backbone and an attention: filling the slots, counting operations, auxiliary losses."""
