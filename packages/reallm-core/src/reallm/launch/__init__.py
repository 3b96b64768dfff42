"""Jobs of many processes: starting them, finding each other, and how a failure of one is everybody's."""
