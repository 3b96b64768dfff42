"""Jobs of many processes: starting and connecting the processes, and reporting the failure of one."""
