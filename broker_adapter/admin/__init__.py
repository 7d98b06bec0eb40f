"""``mqadmin``: the operator's command."""
