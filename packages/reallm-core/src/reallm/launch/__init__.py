"""Jobs of many processes: starting them, finding each other, and reporting the failure of one."""
